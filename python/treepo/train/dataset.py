"""Rows of a data set in the order that training reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from treepo.errors import DataError

Row = Mapping[str, Any]


class PromptSource:
    """A data set shuffled anew for every pass, addressed by the number of rows read so far."""

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        """Take the rows.

        Args:
            rows: Each has a `prompt`; indexable, at least one.
            seed: Decides the order of each pass.

        Raises:
            DataError: There is no row.
        """
        if len(rows) == 0:
            raise DataError("the training data set is empty; give at least one row")
        self._rows = rows
        self._seed = seed
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def take(self, cursor: int, count: int) -> list[Row]:
        """Return `count` rows from position `cursor` of the endless shuffled stream.

        Raises:
            DataError: A row has no prompt.
        """
        return [self._at(position) for position in range(cursor, cursor + count)]

    def _at(self, position: int) -> Row:
        epoch, offset = divmod(position, len(self._rows))
        if epoch != self._epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._order = generator.permutation(len(self._rows))
            self._epoch = epoch
        index = int(self._order[offset])
        row = self._rows[index]
        if "prompt" not in row:
            raise DataError(f"row {index} of the data set has no 'prompt', it has {list(row)}")
        return row
