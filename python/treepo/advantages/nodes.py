"""Sums over subtrees, ancestors and children, for all nodes of a forest at once.

All use the depth-first preorder of `treepo.forest.Nodes`: the nodes below node `k` are
`k..subtree_end[k]`, the ancestors of `k` are the earlier nodes whose range holds `k`, and siblings
are neighbours among the nodes with as many ancestors. So sums over subtrees and ancestors are one
cumulative sum, linear in the number of nodes whatever the depth.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from treepo.forest import Forest, Nodes, TokenKind

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def subtree_sums(nodes: Nodes, values: npt.NDArray[Any]) -> F64:
    """Sum leaf values below each node.

    Args:
        nodes: K nodes over P leaves.
        values: [P], a number for each leaf.

    Returns:
        f64[K], the sum over the leaves at or below each node.
    """
    num_nodes = len(nodes.subtree_end)
    running = np.zeros(num_nodes + 1)
    np.cumsum(np.bincount(nodes.leaf, weights=values, minlength=num_nodes), out=running[1:])
    return running[nodes.subtree_end] - running[:-1]


def ancestor_sums(nodes: Nodes, values: npt.NDArray[Any]) -> F64:
    """Sum node values from the root down to each leaf.

    Args:
        nodes: K nodes over P leaves.
        values: [K], a number for each node.

    Returns:
        f64[P], the sum over the nodes on the way to each leaf, both ends included.
    """
    sums: F64 = _sums_from_root(nodes, values)[nodes.leaf]
    return sums


def proper_ancestor_sums(nodes: Nodes, values: npt.NDArray[Any]) -> F64:
    """Sum node values over the ancestors of each node, itself not included, f64[K]."""
    sums: F64 = _sums_from_root(nodes, values) - values
    return sums


def _sums_from_root(nodes: Nodes, values: npt.NDArray[Any]) -> F64:
    num_nodes = len(nodes.subtree_end)
    ended = np.bincount(nodes.subtree_end, weights=values, minlength=num_nodes + 1)
    running: F64 = np.cumsum(values - ended[:num_nodes], dtype=np.float64)
    return running


@dataclass(frozen=True, slots=True)
class Siblings:
    """The nodes with as many ancestors, grouped by parent.

    Attributes:
        node: i64[n], the nodes; siblings are neighbours.
        first: i64[m], where each group of siblings begins in `node`.
        parent: i64[m], the parent of each group.
        size: i64[m], siblings in each group.
    """

    node: I64
    first: I64
    parent: I64
    size: I64

    def sums(self, values: npt.NDArray[Any]) -> F64:
        """Sum values of the nodes, [n], over each group, f64[m]."""
        total: F64 = np.add.reduceat(values, self.first)
        return total

    def spread(self, values: npt.NDArray[Any]) -> F64:
        """Give each node its group's value, [m] to [n]."""
        result: F64 = np.repeat(values, self.size)
        return result


def sibling_groups(nodes: Nodes) -> Iterator[Siblings]:
    """Yield all nodes but the roots, those with the most ancestors first."""
    level = num_ancestors(nodes)
    order = np.argsort(level, kind="stable")
    bounds = np.searchsorted(level[order], np.arange(1, level.max(initial=0) + 2))
    for begin, end in reversed(list(pairwise(bounds))):
        node = order[begin:end]
        parent = nodes.parent[node].astype(np.int64)
        first = np.flatnonzero(np.diff(parent, prepend=-1))
        size = np.diff(np.append(first, len(node)))
        yield Siblings(node=node, first=first, parent=parent[first], size=size)


def num_ancestors(nodes: Nodes) -> I64:
    """Count the ancestors of each node, i64[K]; not its depth, which counts segments."""
    counts: I64 = np.rint(proper_ancestor_sums(nodes, np.ones(len(nodes.parent)))).astype(np.int64)
    return counts


def roots(nodes: Nodes) -> I64:
    """Return the root of each node's tree, i64[K]."""
    is_root = nodes.parent < 0
    found: I64 = np.flatnonzero(is_root)[np.cumsum(is_root) - 1]
    return found


def num_sampled_tokens(forest: Forest) -> I64:
    """Count the sampled tokens of each trajectory, shared ones once for each that has them.

    Args:
        forest: P trajectories.

    Returns:
        i64[P].
    """
    nodes = forest.nodes()
    return np.rint(ancestor_sums(nodes, sampled_tokens_of_nodes(forest))).astype(np.int64)


def sampled_tokens_of_nodes(forest: Forest) -> I64:
    """Count the sampled tokens of each node, i64[K]."""
    nodes = forest.nodes()
    running = np.zeros(forest.num_tokens + 1, dtype=np.int64)
    np.cumsum(forest.tokens.kind == TokenKind.SAMPLED, out=running[1:])
    first = nodes.token_start
    counts: I64 = running[first + (nodes.end - nodes.start)] - running[first]
    return counts
