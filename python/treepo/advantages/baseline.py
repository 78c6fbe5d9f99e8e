"""What values are compared with."""

from collections.abc import Callable

import numpy as np

from treepo.advantages.backup import sibling_spread
from treepo.advantages.groups import minus_ancestors, minus_group_mean, minus_others
from treepo.advantages.nodes import F64, proper_ancestor_sums, roots, sibling_groups, subtree_sums
from treepo.advantages.presets import AncestorGroups, Baseline
from treepo.errors import InvalidConfigError
from treepo.forest import Forest


def compare_leaves(forest: Forest, leaves: F64, baseline: Baseline, groups: AncestorGroups) -> F64:
    """Return each leaf's difference to a baseline.

    Args:
        forest: P trajectories.
        leaves: f64[P]; NaN where a trajectory is not scored.
        baseline: One that trajectories have: of the parent and of siblings nodes alone know.
        groups: For the baseline of ancestors.

    Returns:
        f64[P]; 0 where a trajectory is not scored.

    Raises:
        InvalidConfigError: The baseline is one of nodes.
    """
    if baseline is Baseline.ROOT:
        is_alone = np.diff(forest.trees.path_start)[forest.paths.tree] == 1
        centered = minus_group_mean(forest.paths.tree, forest.num_trees, leaves)
        return np.where(is_alone, np.nan_to_num(leaves), centered)
    if baseline is Baseline.ANCESTORS:
        return minus_ancestors(forest, leaves, groups)
    if baseline is Baseline.LEAVE_ONE_OUT:
        return minus_others(forest, leaves)
    if baseline is Baseline.NOTHING:
        return np.nan_to_num(leaves)
    raise InvalidConfigError(
        f"a trajectory is not compared with its {baseline.value}; take level node, or one of the "
        "baselines root, ancestors, leave_one_out, nothing"
    )


def compare_nodes(forest: Forest, values: F64, leaves: F64, baseline: Baseline, counts: F64) -> F64:
    """Return each node's difference to a baseline.

    Args:
        forest: K nodes.
        values: f64[K]; NaN where no leaf below is scored.
        leaves: f64[P], for the baseline that leaves a node's own leaves out.
        baseline: Which.
        counts: f64[P], how much each of them counts.

    Returns:
        f64[K]; NaN where the node or what it is compared with has no value.
    """
    if baseline is Baseline.NOTHING:
        return values
    if baseline is Baseline.LEAVE_ONE_OUT:
        return values - _mean_of_others(forest, leaves, counts)
    compare: dict[Baseline, Callable[[Forest, F64], F64]] = {
        Baseline.ROOT: _minus_root,
        Baseline.PARENT: _minus_parent,
        Baseline.SIBLINGS: _minus_siblings,
        Baseline.ANCESTORS: _minus_ancestors,
    }
    return compare[baseline](forest, values)


def _minus_root(forest: Forest, values: F64) -> F64:
    return values - values[roots(forest.nodes())]


def _minus_parent(forest: Forest, values: F64) -> F64:
    parent = forest.nodes().parent
    return np.where(parent < 0, values, values - values[parent])


def _minus_siblings(forest: Forest, values: F64) -> F64:
    result = np.zeros(len(values))
    for siblings in sibling_groups(forest.nodes()):
        result[siblings.node], _ = sibling_spread(siblings, values)
    return result


def _minus_ancestors(forest: Forest, values: F64) -> F64:
    nodes = forest.nodes()
    count = proper_ancestor_sums(nodes, np.ones(len(values)))
    mean = proper_ancestor_sums(nodes, np.nan_to_num(values)) / np.maximum(count, 1.0)
    return values - mean


def _mean_of_others(forest: Forest, leaves: F64, counts: F64) -> F64:
    """Return the mean of the tree's scored leaves that are not below each node, NaN without any."""
    nodes = forest.nodes()
    counts = np.where(np.isnan(leaves), 0.0, counts)
    total = subtree_sums(nodes, counts * np.nan_to_num(leaves))
    count = subtree_sums(nodes, counts)
    root = roots(nodes)
    others = count[root] - count
    # Differences of sums of weights are not exactly 0 where nothing is left.
    has_others = others > 1e-9 * np.maximum(count[root], 1e-300)
    mean = (total[root] - total) / np.where(has_others, others, 1.0)
    result: F64 = np.where(has_others, mean, np.nan)
    return result
