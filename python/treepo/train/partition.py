"""Cuts a packed forest into parts that run through the model one after another.

A part is a connected piece of one tree: its nodes have one ancestor chain outside it. A token
influences later ones only through its keys and values (and its own rows of the head), so a part
needs those of its chain and returns gradients to them; see `treepo.train.partitioned`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treepo.train.pack import PackedForest, Spans

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a packed forest.

    Attributes:
        parent: the part that holds the last token of the chain, -1 for the root of a tree; parents
            come first.
        tokens: packed positions of its tokens, ascending, i64[n].
        spans: its nodes; starts and parents count within the part.
        chain: packed positions of the ancestors of its first token, root first, i64[m].
    """

    parent: int
    tokens: I64
    spans: Spans
    chain: I64


def cut(packed: PackedForest, max_tokens: int) -> list[Part]:
    """Cuts a packed forest into parts of at most `max_tokens` tokens.

    From the leaves up, the largest subtree below a node is cut off until what hangs together fits.
    Longer nodes are cut into pieces first.

    Args:
        packed: the packed forest.
        max_tokens: tokens of a part, at least 1.

    Returns:
        The parts, parents first; each token is in one of them.
    """
    spans = _pieces(packed.spans, max_tokens)
    is_root = _part_roots(spans, max_tokens)
    return _parts(spans, is_root)


def _pieces(spans: Spans, max_tokens: int) -> Spans:
    """Cut nodes that are longer than a part; a piece is the only child of the one before it."""
    start: list[int] = []
    length: list[int] = []
    parent: list[int] = []
    last: list[int] = []
    rows = zip(spans.start.tolist(), spans.length.tolist(), spans.parent.tolist(), strict=True)
    for first, tokens, above in rows:
        behind = -1 if above < 0 else last[above]
        for begin in range(0, tokens, max_tokens):
            start.append(first + begin)
            length.append(min(max_tokens, tokens - begin))
            parent.append(behind)
            behind = len(start) - 1
        last.append(behind)
    return Spans(start=np.array(start), length=np.array(length), parent=np.array(parent))


def _part_roots(spans: Spans, max_tokens: int) -> npt.NDArray[np.bool_]:
    """Say which nodes begin a part, bool[C]."""
    count = len(spans.start)
    is_root = spans.parent < 0
    size = spans.length.copy()
    children: list[list[int]] = [[] for _ in range(count)]
    for node in reversed(range(count)):
        # Children come after their parents, so those of this node are settled.
        attached = sorted(children[node], key=lambda child: int(size[child]))
        while attached and size[node] + sum(int(size[k]) for k in attached) > max_tokens:
            is_root[attached.pop()] = True
        size[node] += sum(int(size[k]) for k in attached)
        if spans.parent[node] >= 0:
            children[spans.parent[node]].append(node)
    return is_root


def _parts(spans: Spans, is_root: npt.NDArray[np.bool_]) -> list[Part]:
    own = np.empty(len(spans.start), dtype=np.int64)
    members: list[list[int]] = []
    for node, above in enumerate(spans.parent.tolist()):
        if is_root[node]:
            members.append([])
        own[node] = len(members) - 1 if is_root[node] else own[above]
        members[own[node]].append(node)
    return [_part(spans, own, nodes) for nodes in members]


def _part(spans: Spans, own: I64, nodes: list[int]) -> Part:
    place = {node: index for index, node in enumerate(nodes)}
    length = spans.length[nodes]
    above = int(spans.parent[nodes[0]])
    chain: list[I64] = []
    node = above
    while node >= 0:
        chain.append(np.arange(spans.start[node], spans.start[node] + spans.length[node]))
        node = int(spans.parent[node])
    tokens = [np.arange(spans.start[k], spans.start[k] + spans.length[k]) for k in nodes]
    return Part(
        parent=-1 if above < 0 else int(own[above]),
        tokens=np.concatenate(tokens).astype(np.int64),
        spans=Spans(
            start=np.cumsum(length) - length,
            length=length,
            parent=np.array([place.get(int(spans.parent[k]), -1) for k in nodes]),
        ),
        chain=np.concatenate([*chain[::-1], np.zeros(0, np.int64)]).astype(np.int64),
    )
