"""Rewards minus the mean reward of their groups, and how they are scaled.

A trajectory whose reward is NaN is not scored: it belongs to no group and its advantage is 0.
"""

import numpy as np

from treepo.advantages.nodes import F64, I64, ancestor_sums, subtree_sums
from treepo.advantages.presets import Groups
from treepo.forest import Forest

_STD_EPSILON = 1e-6
_WHITEN_EPSILON = 1e-8


def center(forest: Forest, rewards: F64, groups: Groups) -> F64:
    """Subtract the mean reward of the groups that each trajectory belongs to.

    The only trajectory of a tree has nothing to be compared with and keeps its reward, as in the
    published code of TreePO.

    Args:
        forest: P trajectories.
        rewards: f64[P]; NaN where a trajectory is not scored.
        groups: Which groups; the mean is over the differences to each group's mean.

    Returns:
        f64[P]; 0 where a trajectory is not scored.
    """
    nodes = forest.nodes()
    is_scored = ~np.isnan(rewards)
    rewards = np.where(is_scored, rewards - _levels(forest, rewards), 0.0)
    num_scored = subtree_sums(nodes, is_scored)
    is_root = nodes.parent < 0
    is_group = is_root.copy()
    if groups is Groups.ANCESTORS:
        is_group |= num_scored > 1
    means = subtree_sums(nodes, rewards) / np.maximum(num_scored, 1)
    means[is_root] *= np.diff(forest.trees.path_start) > 1
    num_groups = ancestor_sums(nodes, is_group)
    mean_of_means = ancestor_sums(nodes, means * is_group) / num_groups
    return np.where(is_scored, rewards - mean_of_means, 0.0)


def _levels(forest: Forest, rewards: F64) -> F64:
    """Return a reward of each trajectory's tree, 0 if the tree has only one or none: f64[P].

    Differences to it are exactly 0 where all rewards of a tree agree, and sums over a large forest
    lose fewer digits.
    """
    levels = np.zeros(forest.num_trees)
    scored = np.flatnonzero(~np.isnan(rewards))
    levels[forest.paths.tree[scored]] = rewards[scored]
    levels[np.diff(forest.trees.path_start) == 1] = 0.0
    return levels[forest.paths.tree]


def divide_by_group_std(forest: Forest, rewards: F64, centered: F64) -> F64:
    """Divide by the standard deviation of the rewards of each tree.

    Args:
        forest: P trajectories.
        rewards: f64[P]; NaN where a trajectory is not scored.
        centered: f64[P], 0 where a trajectory is not scored.

    Returns:
        f64[P]. The deviation is over n - 1 with 1e-6 added, and 1 for the only trajectory of a
        tree.
    """
    deviations = center(forest, rewards, Groups.ROOT)
    squares = np.bincount(forest.paths.tree, deviations**2, minlength=forest.num_trees)
    num_scored = np.bincount(forest.paths.tree, ~np.isnan(rewards), minlength=forest.num_trees)
    std = np.sqrt(squares / np.maximum(num_scored - 1, 1))
    std[np.diff(forest.trees.path_start) == 1] = 1.0
    scaled: F64 = centered / (std + _STD_EPSILON)[forest.paths.tree]
    return scaled


def whiten(values: F64, token_counts: I64) -> F64:
    """Shift and scale values to mean 0 and variance 1 over tokens.

    As if each trajectory's value stood at each of its tokens: a token shared by several
    trajectories counts once for each. The variance is the unbiased one with 1e-8 added, so equal
    values become 0.

    Args:
        values: f64[P].
        token_counts: i64[P], sampled tokens of each trajectory; 0 leaves a trajectory out.

    Returns:
        f64[P]; 0 for trajectories that are left out.
    """
    num_tokens = token_counts.sum() + _WHITEN_EPSILON
    mean = (values * token_counts).sum() / num_tokens
    variance = ((values - mean) ** 2 * token_counts).sum() / num_tokens
    variance *= num_tokens / max(num_tokens - 1, 1)
    whitened: F64 = (values - mean) / np.sqrt(variance + _WHITEN_EPSILON)
    return np.where(token_counts > 0, whitened, 0.0)
