"""Normalisations of differences."""

import numpy as np

from treepo.advantages.backup import sibling_spread
from treepo.advantages.groups import group_std, minus_group_mean
from treepo.advantages.nodes import (
    F64,
    I64,
    num_ancestors,
    num_sampled_tokens,
    sampled_tokens_of_nodes,
    sibling_groups,
    subtree_sums,
)
from treepo.advantages.presets import Scale
from treepo.errors import InvalidConfigError
from treepo.forest import Forest

_WHITEN_EPSILON = 1e-8
_SIBLING_EPSILON = 1e-8


def scale_leaves(forest: Forest, differences: F64, rewards: F64, scale: Scale) -> F64:
    """Scale the differences of trajectories.

    Args:
        forest: P trajectories.
        differences: f64[P], 0 where a trajectory is not scored.
        rewards: f64[P]; NaN where a trajectory is not scored.
        scale: One that trajectories have.

    Returns:
        f64[P].

    Raises:
        InvalidConfigError: The scale is one of nodes.
    """
    if scale is Scale.NONE:
        return differences
    if scale is Scale.GROUP_STD:
        return differences / group_std(forest.paths.tree, forest.num_trees, rewards)
    if scale is Scale.GROUP_AND_BRANCH_STD:
        of_group = differences / group_std(forest.paths.tree, forest.num_trees, rewards)
        return of_group + _z_of_branch(forest, rewards)
    if scale is Scale.BATCH_TOKENS:
        return whiten(differences, np.where(np.isnan(rewards), 0, num_sampled_tokens(forest)))
    raise InvalidConfigError(
        f"the scale {scale.value} is one of nodes; take level node, or one of the scales none, "
        "group_std, group_and_branch_std, batch_tokens"
    )


def scale_nodes(forest: Forest, differences: F64, values: F64, rewards: F64, scale: Scale) -> F64:
    """Scale the differences of nodes.

    Args:
        forest: K nodes.
        differences: f64[K]; NaN where a node has none.
        values: f64[K], which the differences were made from.
        rewards: f64[P]; NaN where a trajectory is not scored.
        scale: One that nodes have.

    Returns:
        f64[K]; NaN where a node has none.

    Raises:
        InvalidConfigError: The scale is one of trajectories.
    """
    nodes = forest.nodes()
    if scale is Scale.NONE:
        return differences
    if scale is Scale.SQRT_LEAVES:
        num_leaves = subtree_sums(nodes, ~np.isnan(rewards))
        return differences / np.sqrt(np.maximum(num_leaves, 1.0))
    if scale is Scale.SIBLING_STD:
        return _by_sibling_std(forest, differences, values)
    if scale is Scale.DEPTH_Z:
        return _z_of_depth(forest, differences)
    if scale is Scale.BATCH_TOKENS:
        times = subtree_sums(nodes, ~np.isnan(rewards)) * sampled_tokens_of_nodes(forest)
        whitened = whiten(np.nan_to_num(differences), np.rint(times).astype(np.int64))
        return np.where(np.isnan(differences), np.nan, whitened)
    raise InvalidConfigError(
        f"the scale {scale.value} is one of trajectories; take level trajectory, or one of the "
        "scales none, sqrt_leaves, sibling_std, depth_z, batch_tokens"
    )


def _z_of_branch(forest: Forest, rewards: F64) -> F64:
    """Return each reward's z-score among the leaves below the same child of the root, f64[P]."""
    nodes = forest.nodes()
    # Roots and their children begin a branch; a trajectory that ends at the root is one of its own.
    branch = np.cumsum(num_ancestors(nodes) <= 1, dtype=np.int64)[nodes.leaf]
    num_groups = len(nodes.parent) + 1
    centered = minus_group_mean(branch, num_groups, rewards)
    return centered / group_std(branch, num_groups, rewards)


def _by_sibling_std(forest: Forest, differences: F64, values: F64) -> F64:
    result = np.zeros(len(values))
    for siblings in sibling_groups(forest.nodes()):
        _, std = sibling_spread(siblings, values)
        difference = differences[siblings.node]
        result[siblings.node] = np.where(
            std > _SIBLING_EPSILON, difference / (std + _SIBLING_EPSILON), 0.0 * difference
        )
    return result


def _z_of_depth(forest: Forest, differences: F64) -> F64:
    """Return z-scores (n - 1) over the nodes of a tree with as many ancestors; 0 for equal ones."""
    nodes = forest.nodes()
    level = num_ancestors(nodes)
    width = int(level.max(initial=0)) + 1
    _, group = np.unique(nodes.tree.astype(np.int64) * width + level, return_inverse=True)
    num_groups = int(group.max(initial=-1)) + 1
    is_known = ~np.isnan(differences)
    count = np.maximum(np.bincount(group, is_known, minlength=num_groups), 1.0)
    mean = np.bincount(group, np.nan_to_num(differences), minlength=num_groups) / count
    deviation = differences - mean[group]
    squares = np.bincount(group, np.nan_to_num(deviation) ** 2, minlength=num_groups)
    std = np.sqrt(squares / np.maximum(count - 1.0, 1.0))[group]
    result: F64 = np.where(
        std > _SIBLING_EPSILON, deviation / (std + _SIBLING_EPSILON), 0.0 * deviation
    )
    return result


def whiten(values: F64, token_counts: I64) -> F64:
    """Shift and scale values to mean 0 and variance 1 over tokens.

    As if each value stood at each of its tokens: a token shared by several trajectories counts
    once for each. The variance is the unbiased one with 1e-8 added, so equal values become 0.

    Args:
        values: f64[n].
        token_counts: i64[n], sampled tokens of each value; 0 leaves it out.

    Returns:
        f64[n]; 0 for values that are left out.
    """
    num_tokens = token_counts.sum() + _WHITEN_EPSILON
    mean = (values * token_counts).sum() / num_tokens
    variance = ((values - mean) ** 2 * token_counts).sum() / num_tokens
    variance *= num_tokens / max(num_tokens - 1, 1)
    whitened: F64 = (values - mean) / np.sqrt(variance + _WHITEN_EPSILON)
    return np.where(token_counts > 0, whitened, 0.0)
