"""From a step plan (numpy arrays that the scheduler filled) to the tensors of a forward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treepo.core import PlanBuffers, PlanSizes

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRows:
    """The rows of a step, in the plan's order; views of arrays that the next plan overwrites.

    Attributes:
        query_starts: i32 [num_rows + 1], each row's first token, and the number of tokens.
        kv_lens: i32 [num_rows], resident tokens of each row, the step's own included.
        row_ids: i32 [num_rows], the row of `table` that holds its blocks.
        table: i32 [max_num_seqs, max_blocks], block ids of every row.
        slots: i64 [num_tokens], where each token's keys and values are written.
        row_order: i32 [num_rows], rows sorted by block table; empty if `groups` is.
        groups: i32 [num_groups, 4], rows that share blocks (`treepo.core.GroupBuffers`).
        num_blocks: Blocks of the pool.
        block_size: Slots of a block.
    """

    query_starts: I32
    kv_lens: I32
    row_ids: I32
    table: I32
    slots: I64
    row_order: I32
    groups: I32
    num_blocks: int
    block_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrangement:
    """What an attention back end made of a step's rows.

    Attributes:
        token_order: i64 [num_tokens], places in the plan in the order in which the back end wants
            the tokens; None: as they are.
        state: What the back end reads again in every layer.
    """

    token_order: I64 | None
    state: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInputs:
    """One step on the model's device. Tokens stand in the order that the back end chose.

    Attributes:
        token_ids: i64 [1, num_tokens].
        positions: i64 [1, num_tokens].
        slot_mapping: i64 [num_tokens], where each token's keys and values are written.
        copies: i64 [2, num_copies], source and destination blocks to copy before the step.
        logit_rows: i64 [num_logit_rows], tokens whose logits are needed, each once; ascending where
            the back end keeps the order of tokens.
        sample_rows: i64 [num_samples], the entry of `logit_rows` that each sample reads; None if
            they are one to one.
        uniforms: f64 [num_samples], in [0, 1).
        arrangement: The back end's view of the rows.
        num_prefill_tokens: Tokens of rows that have more than one.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    copies: Tensor
    logit_rows: Tensor
    sample_rows: Tensor | None
    uniforms: Tensor
    arrangement: Arrangement
    num_prefill_tokens: int


class InputBuilder:
    """Builds `StepInputs` and keeps the block table between steps."""

    def __init__(
        self,
        arrange: Callable[[StepRows], Arrangement],
        *,
        max_num_seqs: int,
        max_model_len: int,
        num_blocks: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        """Make an empty block table of `max_num_seqs` rows.

        Args:
            arrange: The attention back end's `arrange`.
            max_num_seqs: Rows of the table.
            max_model_len: Tokens that a row's blocks hold at most.
            num_blocks: Blocks of the pool.
            block_size: Slots of a block.
            device: Where the inputs are needed.
        """
        self._arrange = arrange
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._device = device
        self._table = np.zeros((max_num_seqs, -(-max_model_len // block_size)), dtype=np.int32)

    def build(
        self,
        plan: PlanBuffers,
        sizes: PlanSizes,
        row_order: I32 | None = None,
        groups: I32 | None = None,
    ) -> StepInputs:
        """Read a plan and return the step's tensors, valid until the next plan.

        Args:
            plan: The step's arrays.
            sizes: How much of them is in use.
            row_order: i32 [num_rows], and
            groups: i32 [num_groups, 4], where rows that share blocks are known.
        """
        updates = plan.table_updates[: sizes.num_table_updates]
        self._table[updates[:, 0], updates[:, 1]] = updates[:, 2]
        num_rows, num_tokens = sizes.num_rows, sizes.num_tokens
        rows = StepRows(
            query_starts=plan.query_starts[: num_rows + 1],
            kv_lens=plan.kv_lens[:num_rows],
            row_ids=plan.row_ids[:num_rows],
            table=self._table,
            slots=plan.slot_mapping[:num_tokens],
            row_order=_NO_ROWS if row_order is None else row_order,
            groups=_NO_GROUPS if groups is None else groups,
            num_blocks=self._num_blocks,
            block_size=self._block_size,
        )
        arrangement = self._arrange(rows)
        logit_rows, sample_rows = _unique_sorted(plan.sample_index[: sizes.num_samples])
        order: I64 | slice = slice(num_tokens)
        if arrangement.token_order is not None:
            order = arrangement.token_order
            place = np.empty_like(order)
            place[order] = np.arange(num_tokens)
            logit_rows = place[logit_rows]
        copies = plan.copies[: sizes.num_copies, :2].T.astype(np.int64)
        return StepInputs(
            token_ids=self._tensor(plan.token_ids[order]).unsqueeze(0),
            positions=self._tensor(plan.positions[order]).unsqueeze(0),
            slot_mapping=self._tensor(plan.slot_mapping[order]),
            copies=self._tensor(copies),
            logit_rows=self._tensor(logit_rows),
            sample_rows=None if sample_rows is None else self._tensor(sample_rows),
            uniforms=self._tensor(plan.uniforms[: sizes.num_samples]),
            arrangement=arrangement,
            num_prefill_tokens=_num_prefill_tokens(rows.query_starts, sizes),
        )

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


_NO_ROWS = np.zeros(0, dtype=np.int32)
_NO_GROUPS = np.zeros((0, 4), dtype=np.int32)


def _unique_sorted(index: I64) -> tuple[I64, I64 | None]:
    """Return a sorted array's distinct values and each entry's place among them if any repeat."""
    repeats = index[1:] == index[:-1]
    if not repeats.any():
        return index, None
    is_first = np.concatenate([[True], ~repeats])
    return index[is_first], np.cumsum(is_first) - 1


def _num_prefill_tokens(query_starts: I32, sizes: PlanSizes) -> int:
    """Return the number of tokens of rows that have more than one; none is empty."""
    if sizes.num_tokens == sizes.num_rows:
        return 0
    query_lens = np.diff(query_starts)
    return int(query_lens[query_lens > 1].sum())
