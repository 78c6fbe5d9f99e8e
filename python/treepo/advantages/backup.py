"""Values of nodes from values of leaves."""

import numpy as np

from treepo.advantages.groups import level_of_groups
from treepo.advantages.nodes import (
    F64,
    I64,
    Siblings,
    num_ancestors,
    sibling_groups,
    subtree_sums,
)
from treepo.advantages.presets import Backup
from treepo.forest import Forest

DECAY = 0.95
_STD_EPSILON = 1e-8


def node_values(forest: Forest, leaves: F64, backup: Backup, counts: F64) -> F64:
    """Return the value of each node.

    Args:
        forest: P trajectories, K nodes.
        leaves: f64[P], the value of each leaf; NaN where a trajectory is not scored.
        backup: How values of inner nodes are made.
        counts: f64[P], how much each leaf counts in leaf means.

    Returns:
        f64[K]; NaN where no leaf below is scored.
    """
    if backup is Backup.LEAF_MEAN:
        return _leaf_means(forest, leaves, counts)
    if backup is Backup.DECAYED:
        return _decayed_means(forest, leaves)
    if backup is Backup.CHILD_SOFTMAX:
        return _child_means(forest, leaves, _logprob_of_nodes(forest))
    return _child_means(forest, leaves, np.zeros(len(forest.nodes().parent)))


def _leaf_means(forest: Forest, leaves: F64, counts: F64) -> F64:
    nodes = forest.nodes()
    counts = np.where(np.isnan(leaves), 0.0, counts)
    level = level_of_groups(forest.paths.tree, forest.num_trees, leaves)
    known = np.where(counts > 0, leaves - level[forest.paths.tree], 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: F64 = subtree_sums(nodes, counts * known) / subtree_sums(nodes, counts)
    return means + level[nodes.tree]


def _decayed_means(forest: Forest, leaves: F64) -> F64:
    nodes = forest.nodes()
    is_scored = ~np.isnan(leaves)
    level = num_ancestors(nodes).astype(np.float64)
    # DECAY ** (level of leaf - level of node): one factor under the sum, the other before it.
    faded = np.where(is_scored, leaves, 0.0) * DECAY ** level[nodes.leaf]
    with np.errstate(invalid="ignore", divide="ignore"):
        means: F64 = subtree_sums(nodes, faded) / subtree_sums(nodes, is_scored)
    return means / DECAY**level


def _child_means(forest: Forest, leaves: F64, logits: F64) -> F64:
    """Means over the children that have a value, weighted by exp(logits), from the leaves up.

    A trajectory that ends where another one goes on is one more child of its node, with the weight
    of the best one.
    """
    nodes = forest.nodes()
    is_scored = ~np.isnan(leaves)
    ends = nodes.leaf[is_scored]
    num_nodes = len(nodes.parent)
    total: F64 = np.bincount(ends, leaves[is_scored], minlength=num_nodes).astype(np.float64)
    weight: F64 = np.bincount(ends, minlength=num_nodes).astype(np.float64)
    values = np.full(num_nodes, np.nan)

    def settle(which: I64) -> None:
        known = which[weight[which] > 0]
        values[known] = total[known] / weight[known]

    for siblings in sibling_groups(nodes):
        settle(siblings.node)
        value = values[siblings.node]
        own = np.exp(_relative_to_best(siblings, logits, value))
        total[siblings.parent] += siblings.sums(np.nan_to_num(value) * own)
        weight[siblings.parent] += siblings.sums(own)
    settle(np.flatnonzero(nodes.parent < 0))
    return values


def _relative_to_best(siblings: Siblings, logits: F64, value: F64) -> F64:
    """Return logits minus the best of siblings that have a value, -inf for those without, [n]."""
    known = np.where(np.isnan(value), -np.inf, logits[siblings.node])
    best = np.maximum.reduceat(known, siblings.first)
    result: F64 = known - siblings.spread(np.where(np.isfinite(best), best, 0.0))
    return result


def _logprob_of_nodes(forest: Forest) -> F64:
    """Return the sum of the log-probs of each node's tokens, f64[K]."""
    nodes = forest.nodes()
    running = np.zeros(forest.num_tokens + 1)
    logprob = np.asarray(forest.tokens.logprob, dtype=np.float64)
    np.cumsum(np.where(np.isfinite(logprob), logprob, 0.0), out=running[1:])
    first = nodes.token_start
    sums: F64 = running[first + (nodes.end - nodes.start)] - running[first]
    return sums


def normalize_among_siblings(forest: Forest, values: F64) -> F64:
    """Return z-scores among siblings (n); only children keep their value, equal ones have 0.

    Siblings without a value are not counted and keep none.
    """
    result = values.copy()
    for siblings in sibling_groups(forest.nodes()):
        deviation, std = sibling_spread(siblings, values)
        has_value = (~np.isnan(values[siblings.node])).astype(np.float64)
        is_alone = siblings.spread(siblings.sums(has_value)) <= 1
        z = np.where(std > _STD_EPSILON, deviation / np.maximum(std, _STD_EPSILON), 0 * deviation)
        result[siblings.node] = np.where(is_alone, values[siblings.node], z)
    return result


def sibling_spread(siblings: Siblings, values: F64) -> tuple[F64, F64]:
    """Return each node's difference to the mean of its siblings, and their deviation (n), [n] each.

    Nodes without a value are left out; their own difference is NaN.
    """
    value = values[siblings.node]
    count = np.maximum(siblings.sums((~np.isnan(value)).astype(np.float64)), 1.0)
    deviation = value - siblings.spread(siblings.sums(np.nan_to_num(value)) / count)
    variance = siblings.sums(np.nan_to_num(deviation) ** 2) / count
    return deviation, np.sqrt(siblings.spread(variance))
