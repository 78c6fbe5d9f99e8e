"""Sums over subtrees and over ancestors, for all nodes of a forest at once.

Both use the depth-first preorder of `treepo.forest.Nodes`: the nodes below node `k` are
`k..subtree_end[k]`, and the ancestors of `k` are the earlier nodes whose range holds `k`. So each
sum is one cumulative sum, linear in the number of nodes whatever the depth.
"""

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
    num_nodes = len(nodes.subtree_end)
    ended = np.bincount(nodes.subtree_end, weights=values, minlength=num_nodes + 1)
    running: F64 = np.cumsum(values - ended[:num_nodes])
    return running[nodes.leaf]


def num_sampled_tokens(forest: Forest) -> I64:
    """Count the sampled tokens of each trajectory, shared ones once for each that has them.

    Args:
        forest: P trajectories.

    Returns:
        i64[P].
    """
    nodes = forest.nodes()
    running = np.zeros(forest.num_tokens + 1, dtype=np.int64)
    np.cumsum(forest.tokens.kind == TokenKind.SAMPLED, out=running[1:])
    first = nodes.token_start
    in_node = running[first + (nodes.end - nodes.start)] - running[first]
    return np.rint(ancestor_sums(nodes, in_node)).astype(np.int64)
