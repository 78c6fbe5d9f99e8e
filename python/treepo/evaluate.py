"""Accuracy of a model on held-out prompts: sampled, greedy, and pass@k."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from treepo.config import EvalConfig, Repetition, SamplingParams, SearchConfig
from treepo.engine import Engine
from treepo.engine.engine import OnStep
from treepo.errors import DataError, InvalidInputError
from treepo.forest import FinishReason, Forest
from treepo.scoring import Scorer, require_some

CORRECT = 1.0
"""A completion is correct from this reward on; the mean reward says more about graded ones."""
MAX_SCORED_AT_ONCE = 256
"""Completions that are scored in one batch at most, but all of one prompt: what hangs costs the
others of its batch, not the whole evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Result of one evaluation; rates lie in 0..1.

    Attributes:
        num_prompts: Prompts evaluated.
        num_samples: Sampled completions a prompt.
        temperature: Temperature of the sampled completions.
        accuracy: Fraction of sampled completions that are correct.
        greedy_accuracy: Fraction of greedy completions that are correct.
        mean_reward: Mean reward of sampled completions that have one, NaN if none has.
        clipped_ratio: Fraction of sampled completions that did not end by themselves.
        pass_at: k to the chance that one of k sampled completions is correct.
        num_unscored: Completions without a reward; they count as not correct.
        num_tokens: Tokens sampled.
        seconds: Wall clock.
    """

    num_prompts: int
    num_samples: int
    temperature: float
    accuracy: float
    greedy_accuracy: float
    mean_reward: float
    clipped_ratio: float
    pass_at: Mapping[int, float]
    num_unscored: int
    num_tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["mean_reward"] = None if math.isnan(self.mean_reward) else self.mean_reward
        return {**values, "pass_at": {str(k): value for k, value in self.pass_at.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Evaluation":
        """Build an evaluation from what `to_dict` gave."""
        pass_at = {int(k): float(value) for k, value in data["pass_at"].items()}
        reward = math.nan if data["mean_reward"] is None else float(data["mean_reward"])
        return cls(**{**data, "pass_at": pass_at, "mean_reward": reward})


def first_rows(rows: Sequence[Mapping[str, Any]] | None, count: int) -> list[Mapping[str, Any]]:
    """Return the first rows of a data set, at most `count`; none of None.

    A slice would not do: that of a `datasets.Dataset` is a dictionary of columns.
    """
    return [] if rows is None else [rows[index] for index in range(min(count, len(rows)))]


def evaluate(
    engine: Engine,
    scorer: Scorer,
    rows: Sequence[Mapping[str, Any]],
    config: EvalConfig,
    *,
    search: SearchConfig,
    on_step: OnStep | None = None,
) -> Evaluation:
    """Sample completions of held-out prompts and score them.

    Args:
        engine: Holds the model.
        scorer: Holds the reward functions.
        rows: Rows of the data set; the first `config.num_prompts` are used.
        config: Samples, temperature and seed.
        search: That of the training: its completions are as long at most, and end by the same
            rules.
        on_step: Called after every engine step.

    Returns:
        The evaluation; the same for the same weights and seed.

    Raises:
        InvalidInputError: There is no row.
        DataError: A row has no prompt.
    """
    began = time.perf_counter()
    chosen = first_rows(rows, config.num_prompts)
    if not chosen:
        raise InvalidInputError("there is no prompt to evaluate; give rows and num_prompts above 0")
    for index, row in enumerate(chosen):
        if "prompt" not in row:
            raise DataError(f"row {index} to evaluate has no 'prompt', it has {list(row)}")

    def run(n: int, temperature: float) -> tuple[npt.NDArray[np.float32], Forest]:
        forest = engine.rollout(
            [row["prompt"] for row in chosen],
            _independent(search, n),
            SamplingParams(temperature=temperature),
            seed=config.seed,
            on_step=on_step,
        )
        scores = scorer.score(forest, chosen, trees_at_once=max(1, MAX_SCORED_AT_ONCE // n))
        require_some([scores])
        return scores.values.reshape(len(chosen), n), forest

    sampled, forest = run(config.num_samples, config.temperature)
    greedy, greedy_forest = run(1, 0.0)
    known = sampled[np.isfinite(sampled)]
    correct = (sampled >= CORRECT).sum(axis=1)
    return Evaluation(
        num_prompts=len(chosen),
        num_samples=config.num_samples,
        temperature=config.temperature,
        accuracy=float((sampled >= CORRECT).mean()),
        greedy_accuracy=float((greedy >= CORRECT).mean()),
        mean_reward=float(known.mean(dtype=np.float64)) if len(known) else math.nan,
        clipped_ratio=float((forest.paths.finish != FinishReason.STOP).mean()),
        pass_at={k: pass_at_k(correct, config.num_samples, k) for k in _ks(config.num_samples)},
        num_unscored=int(np.isnan(sampled).sum() + np.isnan(greedy).sum()),
        num_tokens=sum(x.num_unique_completion_tokens for x in (forest, greedy_forest)),
        seconds=time.perf_counter() - began,
    )


def _independent(search: SearchConfig, n: int) -> SearchConfig:
    """Return the search of independent completions that end as those of `search` do."""
    repeats = search.stop.repetition is not Repetition.IGNORED
    return SearchConfig.flat(
        n, search.completion_len, search.stop, segment_len=search.segment_len if repeats else None
    )


def pass_at_k(num_correct: npt.ArrayLike, n: int, k: int) -> float:
    """Return the unbiased estimate of pass@k (Chen et al. 2021, arXiv:2107.03374, eq. 1).

    Args:
        num_correct: Correct completions of each prompt, int[N], each 0..n.
        n: Completions sampled a prompt.
        k: Completions that a user would draw, 1..n.

    Returns:
        Mean over prompts of 1 - C(n - c, k) / C(n, k).

    Raises:
        InvalidInputError: k is not in 1..n.
    """
    if not 1 <= k <= n:
        raise InvalidInputError(f"k must be in 1..{n}, got {k}; sample more completions")
    counts = np.asarray(num_correct).tolist()
    return float(np.mean([1 - comb(n - c, k) / comb(n, k) for c in counts]))


def _ks(n: int) -> list[int]:
    return sorted({n, *(1 << power for power in range(n.bit_length()) if 1 << power <= n)})
