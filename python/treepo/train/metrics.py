"""What a step is measured by: TRL's names, plus tree/*, engine/* and perf/*."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from treepo.engine import EngineStats
from treepo.forest import FinishReason, Forest, ForkOrigin, TokenKind
from treepo.train.step_metrics import StepMetrics

Metrics = dict[str, float]

SOLVED = 1.0
"""A trajectory counts as accurate from this reward on."""


class MetricsLog:
    """The file `metrics.jsonl` of a run: one JSON object a step."""

    def __init__(self, file: Path) -> None:
        """Name the file; it is made on the first append."""
        self._file = file

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line; NaN and infinity become null."""
        row = {"step": step, **{key: _jsonable(value) for key, value in metrics.items()}}
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    def read(self) -> list[dict[str, float | None]]:
        """Return all complete lines, in order."""
        if not self._file.exists():
            return []
        lines = self._file.read_text(encoding="utf-8").split("\n")
        # What follows the last line end is a line that a dying process did not finish.
        return [json.loads(line) for line in lines[:-1]]

    def truncate(self, last_step: int) -> None:
        """Drop the lines after a step, which a resumed run writes again."""
        rows = [row for row in self.read() if (row["step"] or 0) <= last_step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        writing = self._file.with_suffix(".writing")
        writing.write_text(text, encoding="utf-8")
        writing.replace(self._file)


def reward_metrics(rewards: npt.NDArray[np.float32], path_start: npt.NDArray[np.int32]) -> Metrics:
    """Describe the rewards of a rollout.

    Args:
        rewards: One a trajectory, f32[P]; NaN where a reward is missing.
        path_start: First path of each tree and the end, i32[T + 1].

    Returns:
        `reward`, the mean; `reward_std`, the mean over trees of the deviation (n) within one;
        `frac_reward_zero_std`, the fraction of trees whose known rewards all agree; `accuracy`, the
        fraction of rewards of at least 1; `frac_reward_missing`.
    """
    is_known = np.isfinite(rewards)
    groups = [group[np.isfinite(group)] for group in np.split(rewards, path_start[1:-1])]
    spreads = np.array([group.std() if len(group) else 0.0 for group in groups])
    agree = np.array([len(group) == 0 or group.min() == group.max() for group in groups])
    known = rewards[is_known]
    return {
        "reward": _mean(known),
        "reward_std": _mean(spreads),
        "frac_reward_zero_std": _mean(agree),
        "frac_reward_missing": _mean(~is_known),
        "accuracy": _mean(known >= SOLVED),
    }


def completion_metrics(forest: Forest) -> Metrics:
    """Describe the lengths of completions, in tokens, under TRL's names.

    Args:
        forest: A finished rollout.

    Returns:
        Mean, smallest and largest length; `clipped_ratio`, the fraction that did not stop by
        itself; the mean length of those that did.
    """
    lengths = completion_lengths(forest)
    stopped = forest.paths.finish == FinishReason.STOP
    return {
        "completions/mean_length": _mean(lengths),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": _mean(~stopped),
        "completions/mean_terminated_length": _mean(lengths[stopped]),
    }


def completion_lengths(forest: Forest) -> npt.NDArray[np.int64]:
    """Tokens of every completion, i64[P]."""
    prompt_len = forest.trees.prompt_len[forest.paths.tree]
    return forest.paths.length.astype(np.int64) - prompt_len


def tree_metrics(forest: Forest) -> Metrics:
    """Describe the shape of trees and what sharing saves.

    Args:
        forest: A finished rollout.

    Returns:
        Leaves and nodes a tree, mean depth of a leaf, fraction of paths that a fallback forked,
        and tokens: `tokens_flat` sums over trajectories, `tokens_unique` counts each once, and
        `share_ratio` is the first divided by the second; prompts count in neither.
    """
    nodes = forest.nodes()
    origin = forest.paths.origin
    return {
        "tree/leaves": forest.num_paths / forest.num_trees,
        "tree/nodes": len(nodes.parent) / forest.num_trees,
        "tree/depth_mean": _mean(nodes.depth[nodes.leaf]),
        "tree/fallback_frac": _mean(origin == ForkOrigin.FALLBACK),
        "tree/tokens_flat": float(forest.num_completion_tokens),
        "tree/tokens_unique": float(forest.num_unique_completion_tokens),
        "tree/share_ratio": forest.share_ratio,
    }


def version_metrics(forest: Forest, version: int) -> Metrics:
    """Say what part of the sampled tokens is older than the present weights.

    Args:
        forest: A finished rollout.
        version: Version of the weights.
    """
    is_sampled = forest.tokens.kind == TokenKind.SAMPLED
    return {"tree/stale_token_frac": _mean(forest.tokens.version[is_sampled] < version)}


def engine_metrics(stats: Sequence[EngineStats]) -> Metrics:
    """Sum what the engine counted over the rollouts of a step."""
    names = (
        "steps",
        "decoded_tokens",
        "prefill_tokens",
        "recomputed_tokens",
        "preemptions",
        "evictions",
        "copies",
    )
    sums = {f"engine/{name}": float(sum(getattr(x, name) for x in stats)) for name in names}
    seconds = sum(x.seconds for x in stats)
    rate = sums["engine/decoded_tokens"] / seconds if seconds > 0 else 0.0
    return {**sums, "engine/tok_per_s": rate}


def update_metrics(parts: Sequence[StepMetrics], grad_norms: Sequence[float]) -> Metrics:
    """Describe the optimizer steps of a rollout step under TRL's names.

    Args:
        parts: One entry an optimizer step.
        grad_norms: Global gradient norm before clipping, one an optimizer step.

    Returns:
        Means over the optimizer steps; extremes of the ratio that the loss clips, and of the
        trainer's probability over the sampler's.
    """
    low = _mean(np.array([x.clip_ratio_low for x in parts]))
    high = _mean(np.array([x.clip_ratio_high for x in parts]))
    return {
        "loss": _mean(np.array([x.loss for x in parts])),
        "grad_norm": _mean(np.array(grad_norms)),
        "entropy": _mean(np.array([x.entropy for x in parts])),
        "kl": _mean(np.array([x.kl for x in parts])),
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low + high,
        "sampling/sampling_logp_difference/mean": _mean(np.array([x.abs_log_ratio for x in parts])),
        "ratio/min": min(x.ratio_min for x in parts),
        "ratio/max": max(x.ratio_max for x in parts),
        "sampling/importance_sampling_ratio/min": min(x.weight_min for x in parts),
        "sampling/importance_sampling_ratio/max": max(x.weight_max for x in parts),
        "perf/trained_unique_tokens": float(sum(x.num_unique_tokens for x in parts)),
        "perf/forward_tokens": float(sum(x.num_forward_tokens for x in parts)),
        "perf/trained_trajectory_tokens": float(sum(x.num_trajectory_tokens for x in parts)),
    }


def _mean(values: npt.NDArray[np.generic]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else math.nan


def _jsonable(value: float) -> float | None:
    return value if math.isfinite(value) else None
