"""Nodes as each trajectory reads them: where a shared token has another advantage in each."""

from dataclasses import dataclass

import numpy as np

from treepo.advantages.nodes import F64, I64, num_ancestors, sampled_tokens_of_nodes
from treepo.forest import Forest


@dataclass(frozen=True, slots=True)
class Pairs:
    """A trajectory's nodes from the root down, one trajectory after another.

    Attributes:
        path: i64[E], the trajectory.
        node: i64[E], the node.
        start: i64[P + 1], trajectory p owns the pairs start[p] .. start[p + 1].
    """

    path: I64
    node: I64
    start: I64


def pairs_of(forest: Forest) -> Pairs:
    """Return all pairs of a trajectory and a node on its way, in O(their number)."""
    nodes = forest.nodes()
    depth = num_ancestors(nodes)[nodes.leaf] + 1
    start = np.concatenate([[0], np.cumsum(depth)])
    node = np.empty(start[-1], dtype=np.int64)
    place, current = start[1:] - 1, nodes.leaf.astype(np.int64)
    while len(place):
        node[place] = current
        above = nodes.parent[current]
        goes_on = above >= 0
        place, current = place[goes_on] - 1, above[goes_on].astype(np.int64)
    path = np.repeat(np.arange(forest.num_paths), depth)
    return Pairs(path=path, node=node, start=start)


def minus_faded_parent(forest: Forest, pairs: Pairs, values: F64, fade: float) -> F64:
    """Return V(s) - fade^d V(p(s)), d the nodes from s down to the trajectory's leaf, f64[E].

    Args:
        forest: K nodes.
        pairs: Its pairs.
        values: f64[K].
        fade: Between 0 and 1.
    """
    nodes = forest.nodes()
    above = np.where(nodes.parent < 0, 0.0, values[np.maximum(nodes.parent, 0)])
    # A trajectory's last pair is 1 above the end, and so on up.
    below = pairs.start[pairs.path + 1] - np.arange(len(pairs.path))
    powers = fade ** np.arange(1 + below.max(initial=0))
    result: F64 = values[pairs.node] - powers[below] * above[pairs.node]
    return result


def tokens_of_pairs(forest: Forest, pairs: Pairs, rewards: F64) -> I64:
    """Count the sampled tokens of each pair, 0 where the trajectory is not scored, i64[E]."""
    counts = sampled_tokens_of_nodes(forest)[pairs.node]
    result: I64 = np.where(np.isnan(rewards)[pairs.path], 0, counts)
    return result
