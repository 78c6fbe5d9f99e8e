"""Storms: the same forests under random memory and batch limits, compared bit for bit (law S6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from treepo.config import EngineConfig, SamplingParams, SearchConfig
from treepo.engine import Engine
from treepo.forest import Forest

U32 = npt.NDArray[np.uint32]

SAMPLING = (
    SamplingParams(),
    SamplingParams(temperature=0.6),
    SamplingParams(temperature=0.8, top_k=20),
    SamplingParams(temperature=1.2, top_p=0.9),
)
# The shares of the memory between just enough for one path and ample; most storms are tight.
POOL_SHARES = (0.0, 0.0, 0.0, 0.02, 0.1, 0.3, 1.0)
ROW_LIMITS = (1, 3, 4, 6, 8, 10, 12, 16, 24, 32)
TOKEN_LIMITS = (8, 16, 24, 40, 64, 200, 2048)
BLOCK_SIZES = (1, 2, 4, 8, 16, 32)
NUM_THREADS = (1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One search over several forests, each of which runs under limits of its own.

    Attributes:
        search: How the trees grow.
        sampling: How tokens are drawn.
        seed: Of the draws.
        forests: The prompts of each forest. A tree's key is its place among all trees of the job.
    """

    search: SearchConfig
    sampling: SamplingParams
    seed: int
    forests: Sequence[Sequence[U32]]

    def keys(self, index: int) -> range:
        """Keys of the trees of one forest."""
        first = sum(map(len, self.forests[:index]))
        return range(first, first + len(self.forests[index]))

    def longest_path(self, index: int) -> int:
        """Tokens of the longest path that one forest can hold."""
        return max(map(len, self.forests[index])) + self.search.completion_len

    def ample_tokens(self, index: int) -> int:
        """Tokens of one forest if no two paths shared anything."""
        longest = self.longest_path(index)
        return len(self.forests[index]) * (longest + self.search.width * longest)


def random_job(rng: np.random.Generator, text: U32, *, num_forests: int, max_prompt: int) -> Job:
    """Draw a search and the prompts of its forests.

    Args:
        rng: Of every choice.
        text: Token ids; prompts are cut out of it, some of a forest from one place.
        num_forests: Forests of the job.
        max_prompt: Tokens of the longest prompt; the shortest has 10.
    """
    # The smallest of some draws: what is long costs the most time and is tried all the same.
    search = SearchConfig(
        width=int(rng.integers(2, 9)),
        segment_len=int(rng.integers(4, 17, 3).min()),
        max_depth=int(rng.integers(2, 5, 2).min()),
        initial_divergence=int(rng.integers(1, 4)),
        branch_factor=int(rng.integers(1, 4)),
    )
    return Job(
        search=search,
        sampling=SAMPLING[rng.integers(len(SAMPLING))],
        seed=int(rng.integers(1 << 30)),
        forests=[_random_prompts(rng, text, max_prompt) for _ in range(num_forests)],
    )


def _random_prompts(rng: np.random.Generator, text: U32, max_prompt: int) -> list[U32]:
    prompts, start = [], 0
    for place in range(rng.integers(1, 4)):
        if place == 0 or rng.random() < 0.6:
            start = int(rng.integers(len(text) - max_prompt))
        length = int(rng.integers(10, max_prompt + 1, 2).min())
        prompts.append(text[start : start + length])
    return prompts


def random_limits(
    rng: np.random.Generator,
    *,
    longest_path: int,
    ample_tokens: int,
    base: EngineConfig | None = None,
) -> EngineConfig:
    """Draw memory and batch limits, from a pool that just holds the longest path.

    Args:
        rng: Of every choice.
        longest_path: Tokens of the longest path, prompt included.
        ample_tokens: Tokens of a pool in which nothing is ever evicted.
        base: What is not drawn, for instance the attention back end; the defaults if absent.
    """
    block_size = int(rng.choice(BLOCK_SIZES))
    least, most = (1 + -(-tokens // block_size) for tokens in (longest_path, ample_tokens))
    return (base or EngineConfig()).replace(
        block_size=block_size,
        num_blocks=least + int((most - least) * rng.choice(POOL_SHARES)),
        max_num_seqs=int(rng.choice(ROW_LIMITS)),
        max_num_batched_tokens=int(rng.choice(TOKEN_LIMITS)),
        admission_percent=int(rng.choice([1, 100, 200, 1000])),
        age_bias=int(rng.choice([0, 32, 2**31 - 1])),
    )


def limit(engine: Engine, config: EngineConfig) -> None:
    """Give an engine other memory and batch limits; its packed weights stay."""
    engine.config = config
    engine.release()


def run_reference(engine: Engine, job: Job, base: EngineConfig) -> list[Forest]:
    """Grow all forests of a job at once in ample memory and return them one by one."""
    block_size = 16
    tokens = sum(job.ample_tokens(index) for index in range(len(job.forests)))
    paths = sum(map(len, job.forests)) * (1 + job.search.width)
    num_blocks = 1 + tokens // block_size + 2 * paths
    limit(engine, base.replace(block_size=block_size, num_blocks=num_blocks))
    prompts = [prompt for forest in job.forests for prompt in forest]
    everything = engine.rollout(prompts, job.search, job.sampling, seed=job.seed)
    assert engine.stats.preemptions == engine.stats.evictions == 0
    return [everything.select(job.keys(index)) for index in range(len(job.forests))]


def run_one(engine: Engine, job: Job, index: int) -> Forest:
    """Grow one forest of a job."""
    search, sampling, keys = job.search, job.sampling, job.keys(index)
    return engine.rollout(job.forests[index], search, sampling, seed=job.seed, keys=keys)


def differing_values(
    actual: dict[str, npt.NDArray[Any]], expected: dict[str, npt.NDArray[Any]]
) -> dict[str, int]:
    """How many values of each column differ in a bit, by name; columns without any are left out.

    A column of another length counts as a whole.
    """
    counts = {}
    for name, column in expected.items():
        other = actual[name]
        if other.shape != column.shape:
            counts[name] = max(len(other), len(column))
        elif not np.array_equal(_bits(other), _bits(column)):
            counts[name] = int((_bits(other) != _bits(column)).sum())
    return counts


def _bits(column: npt.NDArray[Any]) -> npt.NDArray[np.unsignedinteger[Any]]:
    return column.view(f"u{column.dtype.itemsize}")


@dataclass(slots=True)
class Tally:
    """What storms did and where they left a mark.

    Attributes:
        forests: Forests compared.
        trees: Trees compared.
        tokens: Token ids compared, prompts included.
        logprobs: Log-probabilities compared, and as many entropies.
        events: Preemptions, evictions and the like, summed over the storms.
        differences: One line for each forest that differs.
    """

    forests: int = 0
    trees: int = 0
    tokens: int = 0
    logprobs: int = 0
    events: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        events = ", ".join(f"{name} {count}" for name, count in sorted(self.events.items()))
        return (
            f"{self.forests} forests of {self.trees} trees, {self.tokens} token ids and "
            f"{self.logprobs} log-probs compared, {len(self.differences)} forests differ; {events}"
        )


def run_storms(
    model: PreTrainedModel,
    jobs: Sequence[Job],
    rng: np.random.Generator,
    base: EngineConfig,
) -> Tally:
    """Grow every forest of the jobs under random limits and compare it with its reference."""
    tally, engine = Tally(), Engine(model, None, base)
    for number, job in enumerate(jobs):
        with threads(max(NUM_THREADS)):
            references = run_reference(engine, job, base)
        for index, expected in enumerate(references):
            config = random_limits(
                rng,
                longest_path=job.longest_path(index),
                ample_tokens=job.ample_tokens(index),
                base=base,
            )
            num_threads = int(rng.choice(NUM_THREADS))
            with threads(num_threads):
                limit(engine, config)
                actual = run_one(engine, job, index)
            tally.forests += 1
            tally.trees += expected.num_trees
            tally.tokens += expected.num_tokens
            tally.logprobs += int(np.isfinite(expected.tokens.logprob).sum())
            for name in ("preemptions", "evictions", "recomputed_tokens", "copies"):
                tally.events[name] += getattr(engine.stats, name)
            # A prompt longer than the step can only arrive in chunks.
            longest = max(map(len, job.forests[index]))
            tally.events["chunked prefills"] += longest > config.max_num_batched_tokens
            tally.events["steps"] += engine.stats.steps
            if counts := differing_values(actual.columns(), expected.columns()):
                changed = {k: v for k, v in config.fields().items() if v != getattr(base, k)}
                tally.differences.append(
                    f"job {number} forest {index}, {num_threads} threads, {changed}: {counts}"
                )
    return tally


@contextmanager
def threads(num_threads: int) -> Iterator[None]:
    """Let torch use this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
