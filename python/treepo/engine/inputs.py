"""From a step plan (numpy arrays that the scheduler filled) to the tensors of a forward pass."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treepo.core import PlanBuffers, PlanSizes

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


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInputs:
    """One step on the model's device.

    Tokens stand in the order of `groups`, not in the plan's: a model does not mind, and attention
    need not reorder them in every layer.

    Attributes:
        token_ids: i64 [1, num_tokens].
        positions: i64 [1, num_tokens].
        slot_mapping: i64 [num_tokens], where each token's keys and values are written.
        copies: i64 [2, num_copies], source and destination blocks to copy before the step.
        logit_rows: i64 [num_logit_rows], tokens whose logits are needed, each once.
        sample_rows: i64 [num_samples], the entry of `logit_rows` that each sample reads; None if
            they are one to one.
        uniforms: f64 [num_samples], in [0, 1).
        groups: The rows, grouped for attention.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    copies: Tensor
    logit_rows: Tensor
    sample_rows: Tensor | None
    uniforms: Tensor
    groups: tuple[RowGroup, ...]

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens of rows that have more than one."""
        return sum(x.num_rows * x.query_len for x in self.groups if x.query_len > 1)


class InputBuilder:
    """Builds `StepInputs` and keeps the block table between steps."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        device: torch.device,
        max_gathered_slots: int,
    ) -> None:
        """Make an empty block table of `max_num_seqs` rows.

        Args:
            max_num_seqs: Rows of the table.
            max_model_len: Tokens that a row's blocks hold at most.
            block_size: Slots of a block.
            device: Where the inputs are needed.
            max_gathered_slots: Padded slots of a group of more than one row at most.
        """
        self._block_size = block_size
        self._device = device
        self._max_slots = max_gathered_slots
        num_blocks = -(-max_model_len // block_size)
        self._table = np.zeros((max_num_seqs, num_blocks), dtype=np.int32)

    def build(self, plan: PlanBuffers, sizes: PlanSizes) -> StepInputs:
        """Read a plan and return the step's tensors, valid until the next plan."""
        updates = plan.table_updates[: sizes.num_table_updates]
        self._table[updates[:, 0], updates[:, 1]] = updates[:, 2]
        starts = plan.query_starts[: sizes.num_rows + 1]
        query_lens = np.diff(starts)
        rows = np.lexsort((plan.kv_lens[: sizes.num_rows], query_lens))
        tokens = _token_order(starts, query_lens, rows)
        place = np.empty_like(tokens)
        place[tokens] = np.arange(len(tokens))
        logit_rows, sample_rows = _unique_sorted(plan.sample_index[: sizes.num_samples])
        copies = plan.copies[: sizes.num_copies, :2].T.astype(np.int64)
        return StepInputs(
            token_ids=self._tensor(plan.token_ids[tokens]).unsqueeze(0),
            positions=self._tensor(plan.positions[tokens]).unsqueeze(0),
            slot_mapping=self._tensor(plan.slot_mapping[tokens]),
            copies=self._tensor(copies),
            logit_rows=self._tensor(place[logit_rows]),
            sample_rows=None if sample_rows is None else self._tensor(sample_rows),
            uniforms=self._tensor(plan.uniforms[: sizes.num_samples]),
            groups=tuple(self._groups(plan, rows, query_lens[rows])),
        )

    def _groups(self, plan: PlanBuffers, rows: I64, query_lens: I32) -> Iterator[RowGroup]:
        """Cut sorted rows into groups."""
        kv_lens, row_ids = plan.kv_lens[rows], plan.row_ids[rows]
        first_token = 0
        for first, end in _split(query_lens, kv_lens, self._max_slots):
            query_len, kv_len = int(query_lens[first]), int(kv_lens[end - 1])
            blocks = self._table[row_ids[first:end], : -(-kv_len // self._block_size)]
            yield RowGroup(
                first_token=first_token,
                blocks=self._tensor(blocks.reshape(-1)),
                kv_lens=self._tensor(kv_lens[first:end].astype(np.int64)),
                num_rows=end - first,
                query_len=query_len,
                kv_len=kv_len,
            )
            first_token += query_len * (end - first)

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _token_order(starts: I32, query_lens: I32, rows: I64) -> I64:
    """Return the tokens of `rows`, row after row, as places in the plan: i64 [num_tokens]."""
    lens = query_lens[rows].astype(np.int64)
    offsets = starts[rows] - (np.cumsum(lens) - lens)
    return np.repeat(offsets, lens) + np.arange(int(starts[-1]))


def _unique_sorted(index: I64) -> tuple[I64, I64 | None]:
    """Return a sorted array's distinct values and each entry's place among them if any repeat."""
    is_first = np.ones(len(index), dtype=bool)
    np.not_equal(index[1:], index[:-1], out=is_first[1:])
    if is_first.all():
        return index, None
    return index[is_first], np.cumsum(is_first) - 1


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
