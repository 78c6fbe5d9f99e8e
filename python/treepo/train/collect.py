"""Dynamic sampling: roll out prompts until enough trees carry a learning signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from treepo.config import TrainConfig
from treepo.engine import Engine, EngineStats
from treepo.forest import Forest
from treepo.rewards.overlong import overlong_punishment
from treepo.scoring import Scorer, Scores
from treepo.train.dataset import PromptSource
from treepo.train.group import Group
from treepo.train.metrics import (
    Metrics,
    completion_metrics,
    engine_metrics,
    reward_metrics,
    tree_metrics,
)

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Trees of one step.

    Attributes:
        sampled: All trees of the step, with rewards.
        kept: Trees with a signal in submission order, with rewards; None when there is none.
        cursor: Prompts drawn so far in the run.
        metrics: Numbers about rewards, completions, trees and the engine.
        first_error: An error of the reward function, None if there was none.
    """

    sampled: Forest
    kept: Forest | None
    cursor: int
    metrics: Metrics
    first_error: str | None


@dataclass(frozen=True, slots=True)
class _Sample:
    """Trees of some prompts, their scores, the rewards trained on, and what the engine did."""

    forest: Forest
    scores: Scores
    rewards: F32
    stats: list[EngineStats]


def _interleaved(parts: Sequence[_Sample]) -> _Sample:
    """Join the shares of processes, which took prompts in turn, in the order of the prompts."""
    counts = [part.forest.num_trees for part in parts]
    firsts = np.cumsum([0, *counts])
    total = int(firsts[-1])
    trees = np.array([firsts[i % len(parts)] + i // len(parts) for i in range(total)])
    forest = Forest.concatenate([part.forest for part in parts])
    starts = forest.trees.path_start
    order = np.concatenate([np.arange(starts[tree], starts[tree + 1]) for tree in trees])
    scores = Scores.joined([part.scores for part in parts], order.astype(np.int64))
    stats = [x for part in parts for x in part.stats]
    return _Sample(forest.select(trees), scores, scores.values, stats)


class Collector:
    """Samples and scores trees and drops those whose rewards all agree (DAPO, section 3.2)."""

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer,
        source: PromptSource,
        config: TrainConfig,
        check: Callable[..., None],
        group: Group | None = None,
    ) -> None:
        """Take the parts.

        Args:
            engine: Grows the trees.
            scorer: Scores them.
            source: Rows of the training set.
            config: Sizes, search, sampling and seed.
            check: Called between engine steps; raises to give the step up.
            group: The processes that share the prompts; None for one alone.
        """
        self._engine = engine
        self._scorer = scorer
        self._source = source
        self._config = config
        self._check = check
        self._group = group or Group()

    def collect(self, cursor: int, progress: float) -> Batch:
        """Sample trees for one step.

        Samples as many prompts as trees are missing, `max_sampling_batches` times at most.
        The key of a tree is the position of its prompt in the run, so it never comes twice.

        Args:
            cursor: Prompts drawn so far.
            progress: How far the run is, from 0 to 1, for the search's schedules.

        Returns:
            The trees; a function of the weights, the config and the cursor.
        """
        wanted = self._config.prompts_per_step
        forests: list[Forest] = []
        kept: list[Forest] = []
        scores: list[Scores] = []
        stats: list[EngineStats] = []
        for _ in range(self._config.max_sampling_batches):
            missing = wanted - sum(forest.num_trees for forest in kept)
            if missing == 0:
                break
            batch = self._sample(cursor, missing, progress)
            forest, score, training_rewards = batch.forest, batch.scores, batch.rewards
            cursor += missing
            forests.append(forest)
            scores.append(score)
            stats += batch.stats
            chosen = trees_with_signal(training_rewards, forest.trees.path_start)
            if len(chosen):
                forest.set_rewards(training_rewards)
                kept.append(forest.select(chosen))
                forest.set_rewards(score.values)
        sampled = Forest.concatenate(forests)
        return Batch(
            sampled=sampled,
            kept=Forest.concatenate(kept) if kept else None,
            cursor=cursor,
            first_error=next((x.first_error for x in scores if x.first_error), None),
            metrics={
                **reward_metrics(sampled.paths.reward, sampled.trees.path_start),
                **_score_metrics(scores),
                **completion_metrics(sampled),
                **tree_metrics(sampled),
                **engine_metrics(stats),
                "tree/sampled": float(sampled.num_trees),
                "tree/kept": float(sum(forest.num_trees for forest in kept)),
            },
        )

    def _sample(self, cursor: int, count: int, progress: float) -> _Sample:
        """Sample and score `count` prompts, each process its share; all get all of them."""
        mine = list(range(self._group.rank, count, self._group.size))
        own = self._sample_own([cursor + index for index in mine], progress) if mine else None
        parts = [part for part in self._group.gather(own) if part is not None]
        sampled = parts[0] if len(parts) == 1 else _interleaved(parts)
        sampled.forest.set_rewards(sampled.scores.values)
        rewards = sampled.scores.values + self._overlong(sampled.forest)
        if self._config.reward.shuffle:
            generator = np.random.default_rng([self._config.seed, cursor])
            rewards = generator.permutation(rewards)
        return replace(sampled, rewards=rewards)

    def _sample_own(self, keys: Sequence[int], progress: float) -> _Sample:
        rows = [self._source.take(key, 1)[0] for key in keys]
        forest = self._engine.rollout(
            [row["prompt"] for row in rows],
            self._config.search,
            self._config.sampling,
            seed=self._config.seed,
            keys=keys,
            on_step=self._check,
            progress=progress,
        )
        scores = self._scorer.score(forest, rows)
        self._check()
        return _Sample(forest, scores, scores.values, [self._engine.stats])

    def _overlong(self, forest: Forest) -> F32:
        config = self._config
        punished = overlong_punishment(
            forest.paths.length - forest.trees.prompt_len[forest.paths.tree],
            max_tokens=config.search.completion_len,
            buffer=config.reward.overlong_buffer,
            penalty=config.reward.overlong_penalty,
        )
        return punished.astype(np.float32)


def trees_with_signal(rewards: F32, path_start: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return the trees whose rewards are all known and do not all agree.

    Args:
        rewards: One a trajectory, f32[P]; NaN where it is missing.
        path_start: First path of each tree and the end, i32[T + 1].

    Returns:
        Tree indices in order, i64.
    """
    lowest = np.minimum.reduceat(rewards, path_start[:-1])
    highest = np.maximum.reduceat(rewards, path_start[:-1])
    return np.flatnonzero(lowest < highest)


def _score_metrics(scores: Sequence[Scores]) -> Metrics:
    metrics: Metrics = {
        "reward/timeouts": float(sum(score.num_timeouts for score in scores)),
        "reward/errors": float(sum(score.num_errors for score in scores)),
    }
    for name in scores[0].by_function:
        values = np.concatenate([score.by_function[name] for score in scores])
        known = values[np.isfinite(values)]
        metrics[f"rewards/{name}/mean"] = float(known.mean()) if len(known) else float("nan")
        metrics[f"rewards/{name}/std"] = float(known.std()) if len(known) else float("nan")
    return metrics
