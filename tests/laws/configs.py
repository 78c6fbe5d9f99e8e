"""Random configurations of the search, over every rule, and limits of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import toy_model as toy
from hypothesis import strategies as st

from treepo import core

LONGEST = 10 + 12
"""Tokens of the longest path: prompt and completion."""


def names(*values: str) -> st.SearchStrategy[str]:
    """One of these names, the first the simplest."""
    return st.sampled_from(values)


def numbers(low: int, high: int) -> st.SearchStrategy[int | None]:
    """A number that may be left out."""
    return st.none() | st.integers(low, high)


BRANCH = st.fixed_dictionaries(
    {
        "by": names(
            *("even", "path_logprob", "mean_logprob", "segment_logprob", "segment_entropy"),
            *("score", "token_surprisal", "token_entropy", "token_entropy_above"),
        )
    },
    optional={
        "prefer": names("low", "high"),
        "temperature": st.floats(0.125, 3.0, width=32),
        "final_temperature": st.floats(0.125, 3.0, width=32),
        "schedule": names("constant", "linear", "sinusoid"),
        "remainder": names("drawn", "last"),
        "num_positions": st.integers(1, 3),
        "copies": st.integers(1, 2),
        "threshold": st.floats(0.0, 2.0, width=32),
    },
)
BUDGET = st.fixed_dictionaries(
    {},
    optional={
        "transfer": names("on", "off"),
        "total": names("trajectories", "unique_tokens", "published_tokens"),
        "max_tokens": st.integers(6, 80),
        "min_width": st.integers(1, 4),
    },
)
FALLBACK = st.fixed_dictionaries(
    {},
    optional={
        "from": names("answered", "nothing", "all", "priority", "longest"),
        "at": names("boundary", "window", "lowest_logprob", "unsure_block", "sure_block", "prompt"),
        "window": numbers(1, 4),
        "max_windows": numbers(1, 4),
        "alignment": names("segment", "token"),
        "refill": names("late", "early"),
        "copies": numbers(1, 4),
    },
)
STOP = st.fixed_dictionaries(
    {},
    optional={
        "strings": st.lists(names("stop", "bab", "aa"), max_size=2),
        "boxed": names("ignored", "stops"),
        "repetition": names("ignored", "tokens", "bytes"),
        "repetition_len": st.integers(1, 2),
        "repetition_count": st.integers(2, 3),
        "repetition_window": st.integers(4, 12),
    },
)


@st.composite
def prune_sections(draw: st.DrawFn) -> dict[str, Any]:
    """Thresholds that lie within what is measured."""
    by = draw(names("nothing", "logprob", "entropy", "score"))
    scale = {"nothing": 0.0, "logprob": -5.0, "entropy": -2.5, "score": 64.0}[by]
    return {
        "by": by,
        "window": draw(st.integers(1, 4)),
        "threshold": scale * draw(st.floats(0.1, 0.9)),
        "warmup_leaves": draw(st.integers(0, 3)),
        "warmup_quantile": draw(st.floats(0.0, 1.0)),
        "leaves": draw(names("count", "are_replaced")),
    }


def sizes() -> dict[str, st.SearchStrategy[Any]]:
    """Numbers of small searches; a completion has at most 12 tokens."""
    return {
        "width": st.integers(1, 8),
        "segment_len": st.integers(1, 4),
        "max_depth": st.integers(1, 3),
        "branch_factor": st.integers(1, 3),
        "initial_divergence": st.integers(1, 3),
        "max_completion_len": numbers(1, 12),
    }


def plain_configs() -> st.SearchStrategy[core.SearchConfig]:
    """Searches with the default rules, which give every tree its width."""
    return st.builds(core.SearchConfig, **sizes(), eos_token_ids=st.just(toy.EOS))


@st.composite
def search_configs(draw: st.DrawFn) -> core.SearchConfig:
    """Searches with any rules that do not look across trees."""
    fields = {name: draw(value) for name, value in sizes().items()}
    for name in ("branch_factor", "initial_divergence"):
        if draw(st.booleans()):
            fields["max_" + name] = fields[name] + draw(st.integers(0, 2))
    sections = {
        "branch": draw(BRANCH),
        "budget": draw(BUDGET),
        "fallback": draw(FALLBACK),
        "stop": draw(STOP),
        "prune": draw(prune_sections()),
    }
    by_score = "score" in (sections["branch"]["by"], sections["prune"]["by"])
    is_judged = by_score or draw(st.booleans())
    return core.SearchConfig(
        **fields,
        **sections,
        verdicts="segments" if is_judged else "nothing",
        progress=draw(st.floats(0.0, 1.0, width=32)),
        eos_token_ids=toy.EOS,
    )


def prompts() -> st.SearchStrategy[list[list[int]]]:
    """A few short prompts; some begin alike."""
    prompt = st.lists(st.integers(0, toy.VOCAB - 1), min_size=1, max_size=10)
    alike = st.integers(1, 10).map(lambda n: [*range(8), 1, 2][:n])
    return st.lists(prompt | alike, min_size=1, max_size=3)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Arguments of a scheduler."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    admission_percent: int = 200
    age_bias: int = 32


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    """From a pool of just one path up."""
    block_size = draw(st.sampled_from([1, 2, 4, 16]))
    one_path = -(-LONGEST // block_size)
    return Limits(
        num_blocks=1 + one_path + draw(st.sampled_from([0, 1, 5, 200])),
        block_size=block_size,
        max_num_seqs=draw(st.sampled_from([1, 2, 5, 32])),
        max_num_batched_tokens=draw(st.sampled_from([1, 3, 8, 64])),
        admission_percent=draw(st.sampled_from([100, 200, 1000])),
        age_bias=draw(st.sampled_from([0, 32, (1 << 32) - 1])),
    )


WIDE = Limits(num_blocks=2000, block_size=4, max_num_seqs=64, max_num_batched_tokens=512)
