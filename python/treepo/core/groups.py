"""The arrays of one step's row groups, allocated on the Python side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from treepo.core.plan import Allocate

if TYPE_CHECKING:
    from treepo._core import Scheduler

I32 = npt.NDArray[np.int32]


class GroupBuffers:
    """Arrays of the rows that share blocks, for kernels that read a shared block once.

    Rows that have a block in common have all blocks before it in common: their block tables form
    a trie. A group is an inner node of it: neighbouring rows in `row_order` and the run of logical
    blocks that all of them and no larger group share. Groups nest.

    Args:
        scheduler: the arrays are large enough for each of its plans.
        allocate: makes one C-contiguous array, e.g. in pinned memory.
    """

    row_order: I32
    """[num_rows] the plan's rows (their places in `row_ids`), sorted by block table."""
    groups: I32
    """[num_groups, 4] first place in `row_order`, number of rows, first logical block, logical
    block behind the last. A group comes behind those within it."""

    def __init__(self, scheduler: Scheduler, allocate: Allocate = np.zeros) -> None:
        sizes = scheduler.buffer_sizes()
        for name, shape in (
            ("row_order", (sizes["row_order"],)),
            ("groups", (sizes["groups"], 4)),
        ):
            setattr(self, name, allocate(shape, np.int32))

    def group(self, scheduler: Scheduler) -> int:
        """Groups the rows of the scheduler's open plan; returns the number of groups.

        Raises:
            InvalidInputError: there is no open plan.
        """
        return scheduler.group_rows(self)
