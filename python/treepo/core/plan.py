"""The arrays of one step, allocated on the Python side and filled by the scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from treepo._core import Scheduler

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


class PlanSizes(NamedTuple):
    """Elements that a plan uses of each array.

    All are 0 when no work is left, or every path that lives waits for a verdict.
    """

    num_rows: int
    """Rows: paths that are computed in this step."""
    num_tokens: int
    """Tokens of all rows."""
    num_samples: int
    """Sampled tokens."""
    num_copies: int
    """Block copies."""
    num_table_updates: int
    """Changes of block tables."""


class Allocate(Protocol):
    """Allocates one array, e.g. in pinned memory."""

    def __call__(self, shape: tuple[int, ...], dtype: npt.DTypeLike, /) -> npt.NDArray[np.generic]:
        """Returns a C-contiguous array."""


class PlanBuffers:
    """Plan arrays. Only the first elements are valid, as many as `PlanSizes` says.

    A plan is valid until its commit. Order of execution: apply `table_updates`, do `copies` (read
    every source before any destination is written), run the forward pass, sample. In each layer
    the keys and values of all rows are written before any row reads.

    Args:
        scheduler: the arrays are large enough for each of its plans.
        allocate: makes one C-contiguous array, e.g. in pinned memory.
    """

    token_ids: I64
    """[num_tokens] token ids of all rows, row after row."""
    positions: I64
    """[num_tokens] their positions."""
    slot_mapping: I64
    """[num_tokens] block * block_size + offset where key and value go; slot 0, of the reserved
    block, takes those of a token whose own are resident already."""
    query_starts: I32
    """[num_rows + 1] first token of each row, then the number of tokens."""
    kv_lens: I32
    """[num_rows] tokens that each row attends to, its own included."""
    row_ids: I32
    """[num_rows] the block table of each row, below max_num_seqs."""
    sample_index: I64
    """[num_samples] the token whose logits are sampled, ascending; paths that have just forked
    share one."""
    uniforms: F64
    """[num_samples] a uniform number in [0, 1) for each sampled token."""
    copies: I32
    """[num_copies, 3] source block, destination block, number of slots from the block's front."""
    table_updates: I32
    """[num_table_updates, 3] row id, logical index, block."""

    def __init__(self, scheduler: Scheduler, allocate: Allocate = np.zeros) -> None:
        sizes = scheduler.buffer_sizes()
        for name, dtype in _DTYPES.items():
            shape = (sizes[name], 3) if name in _TRIPLES else (sizes[name],)
            setattr(self, name, allocate(shape, dtype))

    def plan(self, scheduler: Scheduler) -> PlanSizes:
        """Plans the scheduler's next step into these arrays."""
        return PlanSizes(*scheduler.plan_step(self))


_TRIPLES = frozenset({"copies", "table_updates"})
_DTYPES: dict[str, npt.DTypeLike] = {
    "token_ids": np.int64,
    "positions": np.int64,
    "slot_mapping": np.int64,
    "query_starts": np.int32,
    "kv_lens": np.int32,
    "row_ids": np.int32,
    "sample_index": np.int64,
    "uniforms": np.float64,
    "copies": np.int32,
    "table_updates": np.int32,
}
