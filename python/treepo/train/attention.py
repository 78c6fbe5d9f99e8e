"""Attention over a packed forest: every query sees its own ancestors and nothing else.

Two contexts compute the same thing. `PackedContext` runs each node's queries against the
concatenated keys of its ancestor chain, so it touches exactly the needed pairs; nodes of equal
shape share one call. `DensePackedContext` runs one call with the whole boolean tree mask; it is
the oracle of the tests and what runs on CUDA.

A sliding window counts distance along the path (depth), not along the packed row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from treepo.train.pack import PackedForest, Spans

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Nodes of one shape: `count` nodes of `q_len` queries over `kv_len` keys each."""

    count: int
    q_len: int
    kv_len: int
    mask: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Row order of one window size; groups lie one after another in both orders.

    Attributes:
        query: packed position of each query row, i64[T].
        inverse: query row of each packed position, i64[T].
        kv: packed position of each key row, i64[sum of count * kv_len].
        groups: the nodes, by shape.
    """

    query: Tensor
    inverse: Tensor
    kv: Tensor
    groups: list[_Group]


class PackedContext:
    """Ancestor-chain attention: exactly the needed pairs, no mask over the whole row."""

    def __init__(self, packed: PackedForest, device: torch.device) -> None:
        """Prepares the row orders of full attention; windows are added on first use.

        Args:
            packed: the packed forest.
            device: where the model lives.
        """
        self._prepare(packed.spans, device, num_given=0)

    @classmethod
    def behind(cls, spans: Spans, device: torch.device, num_given: int) -> Self:
        """Returns a context for nodes whose roots follow keys that the caller has.

        Args:
            spans: nodes; their roots have the same ancestors.
            device: where the model lives.
            num_given: keys of the ancestors, which come before the nodes' own in `attend`; queries
                are the nodes' own.
        """
        context = cls.__new__(cls)
        if num_given:
            above = np.where(spans.parent < 0, 0, spans.parent + 1)
            spans = Spans(
                start=np.append(0, spans.start + num_given),
                length=np.append(num_given, spans.length),
                parent=np.append(-1, above),
            )
        context._prepare(spans, device, num_given)
        return context

    def _prepare(self, spans: Spans, device: torch.device, num_given: int) -> None:
        self._spans = spans
        self._device = device
        self._num_given = num_given
        self._chains = chains(spans)
        self._longest = max(len(chain) for chain in self._chains)
        self._plans: dict[int | None, _Plan] = {}

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attends along ancestor chains.

        Args:
            module: the calling attention layer.
            query: [1, H, T, D].
            key: [1, Hkv, T, D].
            value: [1, Hkv, T, Dv].
            scaling: factor of the scores; None means D ** -0.5.
            sliding_window: tokens of its path that a query sees, itself included.
            softcap: scores become `softcap * tanh(score / softcap)`.
            sinks: one extra score a head that takes mass and has no value, [H].

        Returns:
            [1, T, H, Dv].
        """
        del module
        plan = self._plan(sliding_window)
        queries = _rows(query, plan.query)
        keys, values = _rows(key, plan.kv), _rows(value, plan.kv)
        num_q = [group.count * group.q_len for group in plan.groups]
        num_kv = [group.count * group.kv_len for group in plan.groups]
        outputs = [
            scaled_attention(
                _batch(q, group.count),
                _batch(k, group.count),
                _batch(v, group.count),
                group.mask,
                scaling=scaling,
                softcap=softcap,
                sinks=sinks,
            )
            .transpose(1, 2)
            .reshape(-1, query.shape[1] * value.shape[3])
            for group, q, k, v in zip(
                plan.groups,
                torch.split(queries, num_q),
                torch.split(keys, num_kv),
                torch.split(values, num_kv),
                strict=True,
            )
        ]
        ordered = F.embedding(plan.inverse, torch.cat(outputs))
        return ordered.view(1, query.shape[2], query.shape[1], value.shape[3])

    def _plan(self, window: int | None) -> _Plan:
        if window is not None and window >= self._longest:
            window = None
        if window not in self._plans:
            self._plans[window] = _make_plan(
                self._spans, self._chains, window, self._device, self._num_given
            )
        return self._plans[window]


class DensePackedContext:
    """Attention with the dense boolean tree mask: T * T pairs and as many mask bytes."""

    def __init__(self, packed: PackedForest, device: torch.device) -> None:
        """Builds the mask.

        Args:
            packed: the packed forest.
            device: where the model lives.
        """
        index = torch.arange(packed.num_tokens, device=device)
        subtree_end = torch.from_numpy(packed.subtree_end).to(device)
        self._positions = torch.from_numpy(packed.positions).to(device)
        self._visible = (index[None, :] <= index[:, None]) & (index[:, None] < subtree_end[None, :])

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attends over the whole row; arguments and result as in `PackedContext.attend`."""
        del module
        mask = self._visible
        if sliding_window is not None:
            distance = self._positions[:, None] - self._positions[None, :]
            mask = mask & (distance < sliding_window)
        attended = scaled_attention(
            query, key, value, mask, scaling=scaling, softcap=softcap, sinks=sinks
        )
        return attended.transpose(1, 2)


def scaled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Masked attention with grouped heads, score cap and attention sinks.

    Args:
        query: [B, H, Q, D].
        key: [B, Hkv, K, D], where Hkv divides H.
        value: [B, Hkv, K, Dv].
        mask: true where a query sees a key, bool[Q, K]; each row has one true value at least.
        scaling: factor of the scores; None means D ** -0.5.
        softcap: scores become `softcap * tanh(score / softcap)`.
        sinks: one extra score a head that takes mass and has no value, [H].

    Returns:
        [B, H, Q, Dv].
    """
    if softcap is None and sinks is None and query.device.type == "cpu":
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
        )
    # Off the CPU a mask together with enable_gqa selects the kernel that stores all scores.
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if softcap is None and sinks is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    factor = query.shape[3] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(2, 3)) * factor
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is None:
        return torch.softmax(scores, -1) @ value
    extra = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat([scores, extra], -1), -1)[..., :-1] @ value


def _rows(states: Tensor, index: Tensor) -> Tensor:
    """Rows of [1, H, T, D] by packed position, [len(index), H, D].

    An embedding look-up, because its gradient adds rows up several times faster on CPU than
    that of an index or index_select. In float32 at least: a key of the prompt gets one gradient a
    node, and small ones would vanish.
    """
    _, heads, _, dim = states.shape
    rows = states[0].transpose(0, 1).flatten(1)
    is_half = torch.finfo(rows.dtype).bits < 32
    found = F.embedding(index, rows.float() if is_half else rows)
    return found.to(rows.dtype).view(-1, heads, dim)


def _batch(rows: Tensor, count: int) -> Tensor:
    """[count * L, H, D] as [count, H, L, D]."""
    return rows.view(count, -1, *rows.shape[1:]).transpose(1, 2)


def chains(spans: Spans) -> list[I64]:
    """Returns the packed positions from the root of each node's tree to the node's last token."""
    found: list[I64] = []
    rows = zip(spans.start.tolist(), spans.length.tolist(), spans.parent.tolist(), strict=True)
    for start, length, parent in rows:
        own = np.arange(start, start + length, dtype=np.int64)
        found.append(own if parent < 0 else np.concatenate([found[parent], own]))
    return found


def _make_plan(
    spans: Spans, of_nodes: list[I64], window: int | None, device: torch.device, num_given: int
) -> _Plan:
    by_shape: dict[tuple[int, int], list[int]] = {}
    for node, length in enumerate(spans.length.tolist()):
        if node == 0 and num_given:
            continue  # The given keys have no queries here.
        kv_len = len(of_nodes[node])
        if window is not None:
            kv_len = min(kv_len, length + window - 1)
        by_shape.setdefault((length, kv_len), []).append(node)
    query, kv, groups = [], [], []
    for (q_len, kv_len), nodes in by_shape.items():
        query += [of_nodes[node][-q_len:] for node in nodes]
        kv += [of_nodes[node][-kv_len:] for node in nodes]
        mask = _window_mask(q_len, kv_len, window).to(device)
        groups.append(_Group(count=len(nodes), q_len=q_len, kv_len=kv_len, mask=mask))
    order = np.concatenate(query) - num_given
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return _Plan(
        query=torch.from_numpy(order).to(device),
        inverse=torch.from_numpy(inverse).to(device),
        kv=torch.from_numpy(np.concatenate(kv)).to(device),
        groups=groups,
    )


def _window_mask(q_len: int, kv_len: int, window: int | None) -> Tensor:
    """Causal mask with the last query at the last key, bool[q_len, kv_len]."""
    query = torch.arange(kv_len - q_len, kv_len)[:, None]
    key = torch.arange(kv_len)[None, :]
    visible = key <= query
    return visible if window is None else visible & (query - key < window)
