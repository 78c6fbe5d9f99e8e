"""Dynamic sampling: roll out prompts until enough trees carry a learning signal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from treepo.config import TrainConfig
from treepo.engine import Engine, EngineStats, OpenRollout
from treepo.forest import Forest
from treepo.rewards.overlong import overlong_punishment
from treepo.scoring import Scorer, Scores, require_some
from treepo.train.dataset import PromptSource
from treepo.train.group import Group
from treepo.train.metrics import (
    Metrics,
    completion_metrics,
    engine_metrics,
    reward_metrics,
    tree_metrics,
    version_metrics,
)

F32 = npt.NDArray[np.float32]

_MAX_KEPT_TREES = 32
"""Trees kept in an open rollout, in multiples of those sampled at once, until all are finished."""


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
    """Trees of some prompts, their scores, and what the engine did.

    Attributes:
        rewards: What is trained on: scores with what is added to them.
        signal: What says whether a tree has a signal: the scores, in the order of `rewards`.
    """

    forest: Forest
    scores: Scores
    rewards: F32
    signal: F32
    stats: list[EngineStats]

    @classmethod
    def of(cls, forest: Forest, scores: Scores, stats: list[EngineStats]) -> Self:
        """Return trees that are trained on by their scores alone."""
        return cls(forest, scores, scores.values, scores.values, stats)


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
    return _Sample.of(forest.select(trees), scores, stats)


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
        open_trees: bytes | None = None,
    ) -> None:
        """Take the parts.

        Args:
            engine: Grows the trees.
            scorer: Scores them.
            source: Rows of the training set.
            config: Sizes, search, sampling and seed.
            check: Called between engine steps; raises to give the step up.
            group: The processes that share the prompts; None for one alone.
            open_trees: What `open_trees` of an interrupted run's collector returned.
        """
        self._engine = engine
        self._scorer = scorer
        self._source = source
        self._config = config
        self._check = check
        self._group = group or Group()
        self._open: OpenRollout | None = None
        self._saved = open_trees
        self._latest = open_trees
        self._restored = open_trees

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
            if missing <= 0:
                break
            batch, cursor = self._sample(cursor, missing, progress)
            forest, score, training_rewards = batch.forest, batch.scores, batch.rewards
            forests.append(forest)
            scores.append(score)
            require_some(scores)
            stats += batch.stats
            chosen = trees_with_signal(batch.signal, forest.trees.path_start)
            if len(chosen):
                forest.set_rewards(training_rewards)
                kept.append(forest.select(chosen))
                forest.set_rewards(score.values)
        sampled = Forest.concatenate(forests)
        self._latest = None if self._open is None else self._open.to_bytes()
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
                **version_metrics(sampled, self._engine.policy_version),
                "tree/sampled": float(sampled.num_trees),
                "tree/kept": float(sum(forest.num_trees for forest in kept)),
            },
        )

    def _sample(self, cursor: int, count: int, progress: float) -> tuple[_Sample, int]:
        """Sample and score `count` trees; also returns the cursor behind the prompts drawn."""
        if self._config.max_unfinished_trees:
            sampled, cursor = self._sample_open(cursor, count)
        else:
            sampled, cursor = self._sample_shares(cursor, count, progress), cursor + count
        signal = sampled.scores.values
        sampled.forest.set_rewards(signal)
        rewards = signal + self._overlong(sampled.forest)
        if self._config.reward.shuffle:
            generator = np.random.default_rng([self._config.seed, cursor])
            order = generator.permutation(len(rewards))
            rewards, signal = rewards[order], signal[order]
        return replace(sampled, rewards=rewards, signal=signal), cursor

    def _sample_open(self, cursor: int, count: int) -> tuple[_Sample, int]:
        """Take the first `count` trees that are done; others go on in the next step."""
        config = self._config
        if self._open is None:
            restored, self._restored = self._restored, None
            self._open = self._engine.open_rollout(
                config.search, config.sampling, config.seed, saved=restored
            )
        wanted = count + config.max_unfinished_trees
        keys = range(cursor, cursor + max(0, wanted - self._open.num_open))
        if keys:
            self._open.add([self._checked_row(key)["prompt"] for key in keys], keys)
        # Trees that are done are in memory until all are: now and then all are waited for.
        at_once = config.prompts_per_step + config.max_unfinished_trees
        is_full = self._open.num_trees > _MAX_KEPT_TREES * at_once
        forest = self._open.run(wanted if is_full else count, self._check)
        if self._open.is_done:
            self._open = None
        scores = self._scorer.score(forest, [self._row(int(key)) for key in forest.trees.key])
        self._check()
        return _Sample.of(forest, scores, [self._engine.stats]), cursor + len(keys)

    def commit(self) -> None:
        """Say that the step of the latest batch is made; one that is given up begins again."""
        self._saved = self._latest

    def open_trees(self) -> bytes | None:
        """Return the trees that were not done after the latest whole step; None if all were."""
        return self._saved

    def _row(self, key: int) -> Mapping[str, Any]:
        return self._source.take(key, 1)[0]

    def _checked_row(self, key: int) -> Mapping[str, Any]:
        """Return a row whose prompt can be continued; an error names the row."""
        row = self._row(key)
        self._engine.token_ids(row["prompt"], self._source.name(key))
        return row

    def _sample_shares(self, cursor: int, count: int, progress: float) -> _Sample:
        """Sample and score `count` prompts, each process its share; all get all of them."""
        mine = list(range(self._group.rank, count, self._group.size))
        own = self._sample_own([cursor + index for index in mine], progress) if mine else None
        parts = [part for part in self._group.gather(own) if part is not None]
        return parts[0] if len(parts) == 1 else _interleaved(parts)

    def _sample_own(self, keys: Sequence[int], progress: float) -> _Sample:
        rows = [self._checked_row(key) for key in keys]
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
        return _Sample.of(forest, scores, [self._engine.stats])

    def _overlong(self, forest: Forest) -> F32:
        config = self._config
        prompt_len = forest.trees.prompt_len[forest.paths.tree]
        room = self._engine.max_model_len - prompt_len
        punished = overlong_punishment(
            forest.paths.length - prompt_len,
            max_tokens=np.minimum(config.search.completion_len, room),
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
        "reward/slow_calls": float(sum(score.num_slow_calls for score in scores)),
    }
    for name in scores[0].by_function:
        values = np.concatenate([score.by_function[name] for score in scores])
        known = values[np.isfinite(values)]
        metrics[f"rewards/{name}/mean"] = float(known.mean()) if len(known) else float("nan")
        metrics[f"rewards/{name}/std"] = float(known.std()) if len(known) else float("nan")
    return metrics
