"""Every preset under every way to branch: bias and cost, corrected by inclusion weights and not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treepo import core
from treepo.advantages import PRESETS, Counting, Credit, Preset, Scale, credit
from treepo.errors import InvalidInputError
from treepo.forest import Forest
from treepo.lab.estimate import Quality, gradients, quality
from treepo.lab.exact import solve
from treepo.lab.policy import EOS, TabularPolicy, random_policy
from treepo.lab.sampler import Sampled, grow

WIDTH = 8
BATCH_SIZE = 12
"""Trees of a batch: presets that whiten do so over one batch."""

_LENGTH = 6
"""Tokens of a completion of every search at most."""

_TREE: dict[str, Any] = {
    "width": WIDTH,
    "segment_len": 2,
    "max_depth": 3,
    "initial_divergence": 2,
    "branch_factor": 2,
    "fallback": {"from": "nothing"},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "flat": {
        **_TREE,
        "segment_len": 6,
        "max_depth": 1,
        "initial_divergence": WIDTH,
        "branch_factor": 1,
    },
    "even": _TREE,
    "path_logprob": {**_TREE, "branch": {"by": "path_logprob"}},
    "segment_entropy": {**_TREE, "branch": {"by": "segment_entropy", "prefer": "high"}},
    "fallback": {**_TREE, "fallback": {"from": "all", "at": "boundary"}},
    "token_surprisal": {
        **_TREE,
        "segment_len": 6,
        "max_depth": 2,
        "max_completion_len": 6,
        "initial_divergence": 4,
        "branch": {"by": "token_surprisal", "num_positions": 1},
    },
    "prune": {**_TREE, "prune": {"by": "logprob", "window": 2, "threshold": -1.3}},
}
"""Ways to branch by name, as arguments of `treepo.core.SearchConfig`. Sequences have 6 tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One preset under one search.

    Attributes:
        search: Name in `SEARCHES`.
        preset: Name in `treepo.advantages.PRESETS`.
        is_weighted: Whether trajectories count by their inclusion weights (Horvitz-Thompson), or
            all alike. A preset that counts by inclusion itself has one row, a weighted one.
        quality: What came out.
    """

    search: str
    preset: str
    is_weighted: bool
    quality: Quality


def compare(
    num_batches: int,
    *,
    searches: Sequence[str] = tuple(SEARCHES),
    presets: Sequence[str] = tuple(PRESETS),
    policy: TabularPolicy | None = None,
    seed: int = 0,
) -> Iterator[Row]:
    """Measure presets.

    Args:
        num_batches: Batches of `BATCH_SIZE` trees for each search.
        searches: Names in `SEARCHES`.
        presets: Names in `treepo.advantages.PRESETS`.
        policy: What is sampled; `random_policy()` if absent.
        seed: Of the search and of the tokens.

    Raises:
        InvalidInputError: The policy's sequences are not as long as the searches' completions, or
            its prompts do not divide a batch.
    """
    policy = policy or random_policy()
    if policy.depth != _LENGTH or BATCH_SIZE % policy.num_prompts:
        raise InvalidInputError(
            f"the policy has {policy.num_prompts} prompts and sequences of {policy.depth}; the "
            f"lab's searches sample {_LENGTH} tokens and its batches {BATCH_SIZE} trees: take "
            f"depth={_LENGTH} and a number of prompts that divides {BATCH_SIZE}"
        )
    truth = solve(policy).gradient.ravel()
    for name in searches:
        search = core.SearchConfig(**SEARCHES[name], eos_token_ids=[EOS])
        sampled = grow(policy, search, num_batches * BATCH_SIZE, seed)
        for preset in presets:
            credited = _credit(sampled, PRESETS[preset])
            alike = np.ones(sampled.forest.num_paths)
            if PRESETS[preset].counting is Counting.INCLUSION:
                countings = {True: alike}
            else:
                countings = {False: alike, True: sampled.forest.paths.weight.astype(np.float64)}
            for is_weighted, counts in countings.items():
                estimates = gradients(policy, sampled, credited, counts, BATCH_SIZE)
                found = quality(estimates, truth, _tokens_of_batch(sampled.forest))
                yield Row(search=name, preset=preset, is_weighted=is_weighted, quality=found)


def _tokens_of_batch(forest: Forest) -> float:
    return forest.num_unique_completion_tokens / forest.num_trees * BATCH_SIZE


def _credit(sampled: Sampled, preset: Preset) -> Credit:
    """Return the credit of all trees, whitened batch by batch where the preset whitens."""
    if preset.scale is not Scale.BATCH_TOKENS:
        return credit(sampled.forest, sampled.rewards, preset)
    starts = sampled.forest.trees.path_start
    parts = []
    for first in range(0, sampled.forest.num_trees, BATCH_SIZE):
        batch = sampled.forest.select(np.arange(first, first + BATCH_SIZE))
        rewards = sampled.rewards[starts[first] : starts[first + BATCH_SIZE]]
        parts.append(credit(batch, rewards, preset))
    return Credit(
        preset.level,
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.is_scored for part in parts]),
    )
