"""Advantages of a whole forest."""

import difflib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treepo.advantages.backup import node_values, normalize_among_siblings
from treepo.advantages.baseline import compare_leaves, compare_nodes
from treepo.advantages.groups import group_std, minus_ancestors, minus_group_mean
from treepo.advantages.nodes import (
    F64,
    ancestor_sums,
    num_ancestors,
    sampled_tokens_of_nodes,
    subtree_sums,
)
from treepo.advantages.pairs import minus_faded_parent, pairs_of, tokens_of_pairs
from treepo.advantages.presets import (
    PRESETS,
    Backup,
    Baseline,
    Counting,
    Leaves,
    Level,
    Multiplicity,
    Preset,
    Scale,
)
from treepo.advantages.scale import scale_leaves, scale_nodes, whiten
from treepo.errors import InvalidConfigError, InvalidInputError
from treepo.forest import Forest

_SCALES_OF_PAIRS = (Scale.NONE, Scale.BATCH_TOKENS)


@dataclass(frozen=True, slots=True)
class Credit:
    """Advantages of a forest, and how much a shared token counts.

    Attributes:
        level: What has one advantage.
        values: f64[P] of trajectories, f64[K] of nodes or f64[E] of `treepo.advantages.pairs`; 0
            where nothing is known.
        weights: f64[K], weight in the loss of each node's tokens, each time that they occur.
        is_scored: bool[P], whether a trajectory has a reward; without one its tokens have advantage
            0 wherever they are read in it.
    """

    level: Level
    values: F64
    weights: F64
    is_scored: npt.NDArray[np.bool_]

    def of_trajectories(self, forest: Forest) -> F64:
        """Return one number a trajectory, f64[P]: the mean over its sampled tokens.

        Args:
            forest: The forest that the credit is of.
        """
        if self.level is Level.TRAJECTORY:
            return self.values
        nodes = forest.nodes()
        length = sampled_tokens_of_nodes(forest)
        if self.level is Level.TOKEN:
            pairs = pairs_of(forest)
            weighted: F64 = self.values * length[pairs.node]
            total: F64 = np.bincount(pairs.path, weighted, minlength=forest.num_paths).astype(float)
        else:
            total = ancestor_sums(nodes, self.values * length)
        result: F64 = total / np.maximum(ancestor_sums(nodes, length), 1.0)
        return np.where(self.is_scored, result, 0.0)

    def of_trees(self, forest: Forest, trees: npt.NDArray[np.integer]) -> "Credit":
        """Return the credit of some trees, as of `forest.select(trees)`.

        Args:
            forest: The forest that the credit is of.
            trees: Indices of trees, [n].
        """
        bounds = np.searchsorted(forest.nodes().tree, np.arange(forest.num_trees + 1))
        nodes = _ranges(bounds, trees)
        paths = _ranges(forest.trees.path_start, trees)
        of = {Level.TRAJECTORY: paths, Level.NODE: nodes}.get(self.level)
        if of is None:
            of = _ranges(pairs_of(forest).start, paths)
        return Credit(self.level, self.values[of], self.weights[nodes], self.is_scored[paths])

    def at(
        self, forest: Forest, path: npt.NDArray[np.integer], token: npt.NDArray[np.integer]
    ) -> tuple[F64, F64]:
        """Return advantages and weights of tokens in trajectories.

        Args:
            forest: The forest that the credit is of.
            path: [S], the trajectory in which a token is read.
            token: [S], its index in the token columns.

        Returns:
            f64[S] each.
        """
        starts = forest.nodes().token_start
        order = np.argsort(starts, kind="stable")
        # Empty nodes begin where the next one does: the last of those that begin there has tokens.
        node = order[np.searchsorted(starts[order], token, side="right") - 1]
        of = {Level.TRAJECTORY: path, Level.NODE: node}.get(self.level)
        if of is None:
            of = pairs_of(forest).start[path] + num_ancestors(forest.nodes())[node]
        values: F64 = np.where(self.is_scored[path], self.values[of], 0.0)
        return values, self.weights[node]


def _ranges(
    bounds: npt.NDArray[np.integer], chosen: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """Join the ranges bounds[i]..bounds[i + 1] of the chosen i, i64."""
    pieces = [np.arange(bounds[i], bounds[i + 1], dtype=np.int64) for i in chosen]
    return np.concatenate([*pieces, np.zeros(0, dtype=np.int64)])


def credit(
    forest: Forest,
    rewards: npt.NDArray[np.float32] | npt.NDArray[np.float64],
    preset: str | Preset = "treepo",
) -> Credit:
    """Advantages of a forest at the level that the preset has, in time linear in its tokens.

    Args:
        forest: P trajectories. Presets that whiten do so over all of it.
        rewards: f32[P] or f64[P], in the order of `forest.paths`. A trajectory with NaN is left out
            of every group, and its advantage is 0.
        preset: A name in `PRESETS`, or a preset.

    Returns:
        The advantages. Formulas and sources: see `treepo.advantages.presets`.

    Raises:
        InvalidInputError: There is not one reward a trajectory, or one is infinite.
        InvalidConfigError: There is no such preset, or its parts do not fit each other.
    """
    chosen = preset if isinstance(preset, Preset) else find_preset(preset)
    _check_counting(chosen)
    scores = _checked(forest, rewards)
    if forest.num_paths == 0:
        no_weights = np.zeros(len(forest.nodes().parent))
        return Credit(chosen.level, scores, no_weights, np.zeros(0, dtype=bool))
    leaves = _leaf_values(forest, scores, chosen)
    make = {
        Level.TRAJECTORY: _of_trajectories,
        Level.NODE: _of_nodes,
        Level.TOKEN: _of_pairs,
    }[chosen.level]
    values = make(forest, leaves, scores, chosen)
    is_scored = ~np.isnan(scores)
    return Credit(chosen.level, values, _weights(forest, chosen, is_scored), is_scored)


def advantages(
    forest: Forest,
    rewards: npt.NDArray[np.float32] | npt.NDArray[np.float64],
    preset: str | Preset = "treepo",
) -> F64:
    """One advantage a trajectory, for trainers that have no place for more.

    Presets of level node give the mean over a trajectory's tokens; `credit` has all of it.
    Arguments and errors as in `credit`.

    Returns:
        f64[P].
    """
    return credit(forest, rewards, preset).of_trajectories(forest)


def find_preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        InvalidConfigError: There is none; names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {close[0]}" if close else f"known: {', '.join(PRESETS)}"
    raise InvalidConfigError(f"unknown advantage preset {name!r}, {hint}")


def _checked(forest: Forest, rewards: npt.NDArray[np.float32] | npt.NDArray[np.float64]) -> F64:
    scores = np.asarray(rewards, dtype=np.float64)
    if scores.shape != (forest.num_paths,):
        raise InvalidInputError(
            f"rewards have shape {scores.shape}, expected ({forest.num_paths},): "
            "one for each path of the forest"
        )
    if np.isinf(scores).any():
        raise InvalidInputError(
            f"reward of path {int(np.isinf(scores).argmax())} is infinite, "
            "use NaN for a path without a reward"
        )
    return scores


def _leaf_values(forest: Forest, rewards: F64, preset: Preset) -> F64:
    """Return f64[P]; NaN where a trajectory is not scored."""
    if preset.leaves is Leaves.REWARD:
        return rewards
    tree, num_trees = forest.paths.tree, forest.num_trees
    if preset.leaves is Leaves.ANCESTORS:
        values = minus_ancestors(forest, rewards, preset.ancestors)
    else:
        ddof = 0 if preset.leaves is Leaves.GROUP_Z_OVER_ALL else 1
        values = minus_group_mean(tree, num_trees, rewards)
        values = values / group_std(tree, num_trees, rewards, ddof)
    return np.where(np.isnan(rewards), np.nan, values)


def _of_trajectories(forest: Forest, leaves: F64, rewards: F64, preset: Preset) -> F64:
    differences = np.zeros(forest.num_paths)
    for baseline in preset.baselines:
        differences += compare_leaves(forest, leaves, baseline, preset.ancestors)
    return scale_leaves(forest, differences, rewards, preset.scale)


def _node_values(forest: Forest, leaves: F64, preset: Preset) -> F64:
    values = node_values(forest, leaves, preset.backup, _leaf_counts(forest, preset.counting))
    if preset.is_sibling_normalized:
        values = normalize_among_siblings(forest, values)
    if preset.has_root_value:
        return values
    is_root = forest.nodes().parent < 0
    return np.where(is_root & ~np.isnan(values), 0.0, values)


def _of_pairs(forest: Forest, leaves: F64, rewards: F64, preset: Preset) -> F64:
    if preset.baselines != (Baseline.PARENT,) or preset.scale not in _SCALES_OF_PAIRS:
        raise InvalidConfigError(
            "level token goes with the baseline parent and the scales none and batch_tokens; got "
            f"{[x.value for x in preset.baselines]} and {preset.scale.value}"
        )
    values = _node_values(forest, leaves, preset)
    pairs = pairs_of(forest)
    differences = np.nan_to_num(minus_faded_parent(forest, pairs, values, preset.parent_fade))
    if preset.scale is Scale.NONE:
        return differences
    return whiten(differences, tokens_of_pairs(forest, pairs, rewards))


def _of_nodes(forest: Forest, leaves: F64, rewards: F64, preset: Preset) -> F64:
    counts = _leaf_counts(forest, preset.counting)
    values = _node_values(forest, leaves, preset)
    differences = np.zeros(len(values))
    for baseline in preset.baselines:
        differences = differences + compare_nodes(forest, values, leaves, baseline, counts)
    return np.nan_to_num(scale_nodes(forest, differences, values, rewards, preset.scale))


def _leaf_counts(forest: Forest, counting: Counting) -> F64:
    """Return how much each leaf counts, f64[P]."""
    if counting is Counting.ALIKE:
        return np.ones(forest.num_paths)
    return forest.paths.weight.astype(np.float64)


def _weights(forest: Forest, preset: Preset, is_scored: npt.NDArray[np.bool_]) -> F64:
    """Return the weight of each node's tokens in each scored trajectory that has them, f64[K]."""
    nodes = forest.nodes()
    times = np.maximum(subtree_sums(nodes, is_scored.astype(np.float64)), 1.0)
    weights = np.ones(len(times))
    if preset.counting is Counting.INCLUSION:
        # All trajectories of a node together count as its leaves' inclusion weights add up to.
        counts = np.where(is_scored, _leaf_counts(forest, preset.counting), 0.0)
        weights = subtree_sums(nodes, counts) / times
    if preset.multiplicity is Multiplicity.ONCE:
        return weights / times
    if preset.multiplicity is Multiplicity.SQRT:
        return weights / np.sqrt(times)
    return weights


def _check_counting(preset: Preset) -> None:
    if preset.counting is Counting.ALIKE:
        return
    has_leaf_means = preset.level is Level.NODE and preset.backup is Backup.LEAF_MEAN
    compared = {Baseline.LEAVE_ONE_OUT, Baseline.NOTHING}
    if not has_leaf_means or not compared.issuperset(preset.baselines):
        raise InvalidConfigError(
            "counting by inclusion goes with level node, backup leaf_mean and the baselines "
            f"leave_one_out and nothing; got level {preset.level.value}, backup "
            f"{preset.backup.value}, baselines {[x.value for x in preset.baselines]}"
        )
