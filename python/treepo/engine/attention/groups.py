"""Rows of a step in groups whose attention is one padded batch, for back ends that gather."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treepo.engine.inputs import StepRows

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroup:
    """Rows of equal query length whose attention is computed as one padded batch.

    Attributes:
        first_token: The group's tokens begin here in the step and follow each other.
        blocks: i32 [num_rows * blocks_per_row], block 0 where a row is shorter than the longest.
        kv_lens: i64 [num_rows], resident tokens of each row, the step's own included.
        num_rows: Rows in the group.
        query_len: Tokens of each row in this step.
        kv_len: The largest of `kv_lens`.
    """

    first_token: int
    blocks: Tensor
    kv_lens: Tensor
    num_rows: int
    query_len: int
    kv_len: int
    _masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    def visible(self, sliding_window: int | None, fold: int) -> Tensor:
        """Return which keys each query sees; layers share the result.

        Args:
            sliding_window: A query at position p sees keys above p - sliding_window; None: all.
            fold: Query heads folded into the query dimension, head-major.

        Returns:
            bool [num_rows, 1, fold * query_len, kv_len]; the third dimension is 1 if every query
            of a row sees the same keys.
        """
        key = (sliding_window, fold)
        if key not in self._masks:
            self._masks[key] = self._make_visible(sliding_window, fold)
        return self._masks[key]

    def _make_visible(self, sliding_window: int | None, fold: int) -> Tensor:
        device = self.kv_lens.device
        offsets = torch.arange(1 - self.query_len, 1, device=device)
        last = (self.kv_lens - 1).view(-1, 1, 1, 1)
        position = last + offsets.view(1, 1, -1, 1)
        keys = torch.arange(self.kv_len, device=device)
        visible = keys <= position
        if sliding_window is not None:
            visible &= keys > position - sliding_window
        return visible if self.query_len == 1 else visible.repeat(1, 1, fold, 1)


def group_rows(
    rows: StepRows, *, max_gathered_slots: int, device: torch.device
) -> tuple[I64, tuple[RowGroup, ...]]:
    """Sort a step's rows by query length and KV length and cut them into groups.

    Args:
        rows: The step's rows.
        max_gathered_slots: Padded slots of a group of more than one row at most.
        device: Where the groups' tensors are needed.

    Returns:
        The step's tokens in the order of the groups, i64 [num_tokens], and the groups.
    """
    query_lens = np.diff(rows.query_starts)
    order = np.lexsort((rows.kv_lens, query_lens))
    tokens = _token_order(rows.query_starts, query_lens, order)
    groups = _groups(rows, order, query_lens[order], max_gathered_slots, device)
    return tokens, tuple(groups)


def _groups(
    rows: StepRows, order: I64, query_lens: I32, max_slots: int, device: torch.device
) -> Iterator[RowGroup]:
    kv_lens, row_ids = rows.kv_lens[order], rows.row_ids[order]
    first_token = 0
    for first, end in _split(query_lens, kv_lens, max_slots):
        query_len, kv_len = int(query_lens[first]), int(kv_lens[end - 1])
        blocks = rows.table[row_ids[first:end], : -(-kv_len // rows.block_size)]
        yield RowGroup(
            first_token=first_token,
            blocks=torch.from_numpy(blocks.reshape(-1)).to(device),
            kv_lens=torch.from_numpy(kv_lens[first:end].astype(np.int64)).to(device),
            num_rows=end - first,
            query_len=query_len,
            kv_len=kv_len,
        )
        first_token += query_len * (end - first)


def _token_order(starts: I32, query_lens: I32, rows: I64) -> I64:
    """Return the tokens of `rows`, row after row, as places in the plan: i64 [num_tokens]."""
    lens = query_lens[rows].astype(np.int64)
    offsets = starts[rows] - (np.cumsum(lens) - lens)
    return np.repeat(offsets, lens) + np.arange(int(starts[-1]))


def _split(query_lens: I32, kv_lens: I32, max_slots: int) -> Iterator[tuple[int, int]]:
    """Cut rows, sorted by both lengths, into runs of one query length.

    A run of more than one row gathers at most `max_slots` slots, padded to its last row.
    """
    first = 0
    bounds = np.flatnonzero(np.diff(query_lens)) + 1
    for end in (*bounds.tolist(), len(query_lens)):
        while first < end:
            padded = kv_lens[first:end].astype(np.int64) * np.arange(1, end - first + 1)
            num_rows = max(1, int(np.searchsorted(padded, max_slots, side="right")))
            yield first, first + num_rows
            first += num_rows
