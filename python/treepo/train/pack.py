"""Depth-first packing of a forest into one row of tokens.

Every unique token of the chosen paths appears once. In depth-first preorder a subtree is a
contiguous interval, so the whole tree mask is one integer a token:

    visible(q, kv) = (kv <= q) and (q < subtree_end[kv])

The same formula keeps trees apart. The first token of a node is predicted by the last token
of its parent node, which in this order is not the token before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treepo.errors import InvalidInputError
from treepo.forest import Forest, TokenKind

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """The nodes that attention works on: chains of only children merged into one.

    Attributes:
        start: first packed position of each node, i64[C].
        length: tokens of each node, i64[C].
        parent: parent node, -1 for a root, i64[C]; parents come first.
    """

    start: I64
    length: I64
    parent: I64


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedForest:
    """A forest as one row of T unique tokens, U of them sampled, S counted per trajectory.

    Attributes:
        token_ids: token at each packed position, i64[T].
        positions: depth in tokens from the tree's first token, i64[T].
        subtree_end: packed position at which the subtree of the token's node ends, i64[T].
        token_index: index of each packed token in `forest.tokens`, i64[T].
        spans: the nodes that attention works on.
        predictor: packed position whose output predicts the sampled token, i64[U].
        target: packed position of the sampled token, i64[U].
        old_logprob: log-prob recorded when the token was sampled, f32[U].
        entropy: entropy recorded when the token was sampled, in nats, f32[U].
        src: index into the U sampled tokens, for every sampled token of every trajectory, one
            trajectory after another, i64[S].
        src_path: path index, in the forest that was packed, of each entry of `src`, i32[S].
    """

    token_ids: I64
    positions: I64
    subtree_end: I64
    token_index: I64
    spans: Spans
    predictor: I64
    target: I64
    old_logprob: F32
    entropy: F32
    src: I64
    src_path: I32

    @property
    def num_tokens(self) -> int:
        """Unique tokens, T."""
        return len(self.token_ids)

    @property
    def num_sampled_tokens(self) -> int:
        """Unique sampled tokens, U."""
        return len(self.target)

    @property
    def num_trajectory_tokens(self) -> int:
        """Sampled tokens counted once for each trajectory that holds them, S."""
        return len(self.src)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PackedNodes:
    """The nodes on the chosen paths, in packing order; indices count these nodes only."""

    start: I64
    length: I64
    parent: I64
    subtree_end: I64
    offset: I64
    token_start: I64
    leaf: I64


def pack(forest: Forest, paths: npt.ArrayLike | None = None) -> PackedForest:
    """Packs the unique tokens of a forest's paths, depth first.

    Args:
        forest: the forest.
        paths: distinct path indices to keep, int[n]; all of them by default. Tokens that no kept
            path holds are left out.

    Returns:
        The packed forest. O(tokens) time, where a trajectory's tokens count per trajectory.

    Raises:
        InvalidInputError: if `paths` is empty, repeats a path, or names one that does not exist.
    """
    chosen = _chosen_paths(forest, paths)
    nodes = _chosen_nodes(forest, chosen)
    within = _ranges(nodes.length)
    token_index = np.repeat(nodes.token_start, nodes.length) + within
    bounds = np.append(nodes.offset, nodes.length.sum())
    sampled = np.asarray(forest.tokens.kind)[token_index] == TokenKind.SAMPLED
    target = np.flatnonzero(sampled)
    src, src_row = _expand(nodes, sampled)
    return PackedForest(
        token_ids=np.asarray(forest.tokens.id)[token_index].astype(np.int64),
        positions=np.repeat(nodes.start, nodes.length) + within,
        subtree_end=np.repeat(bounds[nodes.subtree_end], nodes.length),
        token_index=token_index,
        spans=_merge_only_children(nodes),
        predictor=_predictors(nodes)[target],
        target=target,
        old_logprob=np.asarray(forest.tokens.logprob)[token_index[target]].astype(np.float32),
        entropy=np.asarray(forest.tokens.entropy)[token_index[target]].astype(np.float32),
        src=src,
        src_path=chosen[src_row].astype(np.int32),
    )


def microbatches(forest: Forest, max_tokens: int, *, may_be_cut: bool = False) -> list[I64]:
    """Splits a forest into runs of whole trees that fit a forward pass.

    Args:
        forest: the forest.
        max_tokens: unique tokens, prompts included, that one run may have.
        may_be_cut: whether a larger tree makes a run of its own, which is then cut into parts.

    Returns:
        Tree indices of each run, in order, each int64; together every tree once.

    Raises:
        InvalidInputError: if one tree alone has more than `max_tokens` tokens and may not be cut.
    """
    sizes = tree_sizes(forest)
    if len(sizes) and sizes.max() > max_tokens and not may_be_cut:
        tree = int(sizes.argmax())
        raise InvalidInputError(
            f"tree {tree} has {sizes[tree]} unique tokens, above max_tokens_per_microbatch = "
            f"{max_tokens}: set max_tokens_per_microbatch to at least {sizes[tree]}, sample "
            "smaller trees, or let them be cut (update.activations=keep, update.weights=whole, "
            "update.parts=recompute)"
        )
    return list(_fill(sizes, max_tokens))


def tree_sizes(forest: Forest) -> I64:
    """Unique tokens of each tree, prompt included, i64[num_trees]."""
    bounds = np.asarray(forest.paths.token_start)[np.asarray(forest.trees.path_start)]
    return np.diff(bounds).astype(np.int64)


def _fill(sizes: I64, max_tokens: int) -> Iterator[I64]:
    first, used = 0, 0
    for tree, size in enumerate(sizes.tolist()):
        if used and used + size > max_tokens:
            yield np.arange(first, tree, dtype=np.int64)
            first, used = tree, 0
        used += size
    if first < len(sizes):
        yield np.arange(first, len(sizes), dtype=np.int64)


def _chosen_paths(forest: Forest, paths: npt.ArrayLike | None) -> I64:
    if paths is None:
        chosen = np.arange(forest.num_paths, dtype=np.int64)
    else:
        chosen = np.asarray(paths, dtype=np.int64).reshape(-1)
    if len(chosen) == 0:
        raise InvalidInputError("there is no path to pack: choose at least one")
    if chosen.min() < 0 or chosen.max() >= forest.num_paths:
        raise InvalidInputError(
            f"paths to pack lie in {chosen.min()}..{chosen.max()}, but the forest has "
            f"{forest.num_paths} paths"
        )
    if len(np.unique(chosen)) != len(chosen):
        raise InvalidInputError("the paths to pack repeat a path: name each once")
    return chosen


def _chosen_nodes(forest: Forest, chosen: I64) -> _PackedNodes:
    nodes = forest.nodes()
    count = len(nodes.start)
    leaf = np.asarray(nodes.leaf, dtype=np.int64)[chosen]
    leaves_before = np.concatenate([[0], np.cumsum(np.bincount(leaf, minlength=count))])
    subtree_end = np.asarray(nodes.subtree_end, dtype=np.int64)
    keep = np.flatnonzero(leaves_before[subtree_end] > leaves_before[:-1])
    rank = np.zeros(count + 1, dtype=np.int64)
    rank[keep + 1] = 1
    rank = np.cumsum(rank)
    start = np.asarray(nodes.start, dtype=np.int64)[keep]
    length = np.asarray(nodes.end, dtype=np.int64)[keep] - start
    parent = np.asarray(nodes.parent, dtype=np.int64)[keep]
    return _PackedNodes(
        start=start,
        length=length,
        parent=np.where(parent >= 0, rank[parent], -1),
        subtree_end=rank[subtree_end[keep]],
        offset=np.cumsum(length) - length,
        token_start=np.asarray(nodes.token_start, dtype=np.int64)[keep],
        leaf=rank[leaf],
    )


def _predictors(nodes: _PackedNodes) -> I64:
    """Packed position that predicts each token, i64[T]; -1 for a tree's first token."""
    before = np.arange(-1, nodes.length.sum() - 1, dtype=np.int64)
    parent_last = (nodes.offset + nodes.length - 1)[nodes.parent]
    before[nodes.offset] = np.where(nodes.parent >= 0, parent_last, -1)
    return before


def _expand(nodes: _PackedNodes, sampled: Bool) -> tuple[I64, I64]:
    """Sampled tokens of every trajectory in order: index among them, and chosen row, i64[S]."""
    ends = np.concatenate([[0], np.cumsum(sampled)])
    first = ends[nodes.offset]
    count = ends[nodes.offset + nodes.length] - first
    node, row = _ancestors(nodes)
    repeated = count[node]
    src = np.repeat(first[node], repeated) + _ranges(repeated)
    return src.astype(np.int64), np.repeat(row, repeated)


def _ancestors(nodes: _PackedNodes) -> tuple[I64, I64]:
    """Nodes of every chosen path from the root down: node and chosen row, i64 each."""
    node, row = nodes.leaf, np.arange(len(nodes.leaf), dtype=np.int64)
    found: list[tuple[I64, I64]] = []
    while len(node):
        found.append((node, row))
        above = nodes.parent[node]
        node, row = above[above >= 0], row[above >= 0]
    all_nodes = np.concatenate([node for node, _ in found])
    all_rows = np.concatenate([row for _, row in found])
    order = np.lexsort((all_nodes, all_rows))
    return all_nodes[order], all_rows[order]


def _merge_only_children(nodes: _PackedNodes) -> Spans:
    has_parent = nodes.parent >= 0
    children = np.bincount(nodes.parent[has_parent], minlength=len(nodes.parent))
    head = ~has_parent | (children[nodes.parent] != 1)
    span_of = np.cumsum(head) - 1
    first = np.flatnonzero(head)
    start = nodes.offset[first]
    end = np.append(start[1:], nodes.length.sum())
    parent = nodes.parent[first]
    return Spans(
        start=start,
        length=end - start,
        parent=np.where(parent >= 0, span_of[parent], -1).astype(np.int64),
    )


def _ranges(lengths: I64) -> I64:
    """`0..lengths[0]`, `0..lengths[1]`, ... concatenated, i64."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) - np.repeat(ends - lengths, lengths)
