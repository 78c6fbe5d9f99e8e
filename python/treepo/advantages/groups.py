"""A trajectory's reward compared with the leaves below its ancestors.

A trajectory whose reward is NaN is not scored: it belongs to no group, and its value is 0.
"""

import numpy as np
import numpy.typing as npt

from treepo.advantages.nodes import F64, ancestor_sums, subtree_sums
from treepo.advantages.presets import AncestorGroups, Pooling
from treepo.forest import Forest

_STD_EPSILON = 1e-6


def minus_ancestors(forest: Forest, rewards: F64, groups: AncestorGroups) -> F64:
    """Subtract the pooled means of the groups that each trajectory belongs to.

    The only trajectory of a tree has nothing to be compared with and keeps its reward, as in the
    published code of TreePO.

    Args:
        forest: P trajectories.
        rewards: f64[P]; NaN where a trajectory is not scored.
        groups: Which groups, and their weights.

    Returns:
        f64[P]; 0 where a trajectory is not scored or has no group.
    """
    nodes = forest.nodes()
    is_scored = ~np.isnan(rewards)
    rewards = np.where(is_scored, rewards - levels(forest, rewards), 0.0)
    num_scored = subtree_sums(nodes, is_scored)
    is_root = nodes.parent < 0
    is_group = (num_scored > (0 if groups.has_singles else 1)) & ~is_root
    if not groups.has_uniform:
        is_group &= ~_is_uniform(forest, rewards, is_scored)
    if groups.has_root:
        is_group |= is_root
    means = subtree_sums(nodes, rewards) / np.maximum(num_scored, 1)
    means[is_root] *= np.diff(forest.trees.path_start) > 1
    weights = is_group * (num_scored if groups.pooling is Pooling.SIZE else 1.0)
    total = ancestor_sums(nodes, weights)
    pooled = ancestor_sums(nodes, means * weights)
    values = (rewards * total - pooled) / np.maximum(total, 1.0)
    return np.where(is_scored, values, 0.0)


def _is_uniform(
    forest: Forest, rewards: F64, is_scored: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Whether the scored rewards below each node agree exactly, bool[K]."""
    nodes = forest.nodes()
    # A node's leaves are neighbours in preorder; they agree if none differs from the one before it.
    order = np.argsort(nodes.leaf, kind="stable")
    order = order[is_scored[order]]
    changes = np.zeros(len(order) + 1)
    np.cumsum(np.diff(rewards[order], prepend=rewards[order[:1]]) != 0, out=changes[1:])
    place = nodes.leaf[order]
    begin = np.searchsorted(place, np.arange(len(nodes.subtree_end)))
    end = np.searchsorted(place, nodes.subtree_end)
    inner = changes[end] - changes[np.minimum(begin + 1, len(order))]
    result: npt.NDArray[np.bool_] = (end - begin < 2) | (inner == 0)
    return result


def minus_others(forest: Forest, rewards: F64) -> F64:
    """Subtract the mean reward of the other trajectories of the tree; the only one keeps its own.

    Returns:
        f64[P]; 0 where a trajectory is not scored.
    """
    tree, is_scored = forest.paths.tree, ~np.isnan(rewards)
    known = np.where(is_scored, rewards - levels(forest, rewards), 0.0)
    total = np.bincount(tree, known, minlength=forest.num_trees)[tree]
    others = np.bincount(tree, is_scored, minlength=forest.num_trees)[tree] - 1
    has_others = np.diff(forest.trees.path_start)[tree] > 1
    values = known - np.where(has_others, (total - known) / np.maximum(others, 1), 0.0)
    return np.where(is_scored, values, 0.0)


def levels(forest: Forest, rewards: F64) -> F64:
    """Return a reward of each trajectory's tree, 0 if the tree has only one or none: f64[P]."""
    found = level_of_groups(forest.paths.tree, forest.num_trees, rewards)
    found[np.diff(forest.trees.path_start) == 1] = 0.0
    return found[forest.paths.tree]


def level_of_groups(group: npt.NDArray[np.integer], num_groups: int, values: F64) -> F64:
    """Return a value of each group, 0 where none is known: f64[num_groups].

    Differences to it are exactly 0 where all values of a group agree, and sums over a large forest
    lose fewer digits.
    """
    is_known = ~np.isnan(values)
    level = np.zeros(num_groups)
    level[group[is_known]] = values[is_known]
    return level


def group_std(group: npt.NDArray[np.integer], num_groups: int, rewards: F64, ddof: int = 1) -> F64:
    """Return the standard deviation of the rewards of each trajectory's group, plus 1e-6.

    Args:
        group: [P], the group of each trajectory.
        num_groups: Number of groups.
        rewards: f64[P]; NaN where a trajectory is not scored.
        ddof: Squares are divided by n minus this.

    Returns:
        f64[P]; 1 for the only trajectory of a group.
    """
    centered = minus_group_mean(group, num_groups, rewards)
    squares = np.bincount(group, centered**2, minlength=num_groups)
    num_scored = np.bincount(group, ~np.isnan(rewards), minlength=num_groups)
    std = np.sqrt(squares / np.maximum(num_scored - ddof, 1))
    std[np.bincount(group, minlength=num_groups) == 1] = 1.0
    result: F64 = (std + _STD_EPSILON)[group]
    return result


def minus_group_mean(group: npt.NDArray[np.integer], num_groups: int, rewards: F64) -> F64:
    """Subtract the mean of each trajectory's group; the only one of a group has 0.

    Returns:
        f64[P]; 0 where a trajectory is not scored.
    """
    is_scored = ~np.isnan(rewards)
    level = level_of_groups(group, num_groups, rewards)
    known = np.where(is_scored, rewards - level[group], 0.0)
    num_scored = np.bincount(group, is_scored, minlength=num_groups)
    mean = np.bincount(group, known, minlength=num_groups) / np.maximum(num_scored, 1)
    return np.where(is_scored, known - mean[group], 0.0)
