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
            DataError: There is no row, or the first has no prompt.
        """
        if len(rows) == 0:
            raise DataError("the training data set is empty; give at least one row")
        if "prompt" not in rows[0]:
            raise DataError(f"rows need a 'prompt' column, the first has {sorted(rows[0])}")
        self._rows = rows
        self._seed = seed
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def take(self, cursor: int, count: int) -> list[Row]:
        """Return `count` rows from position `cursor` of the endless shuffled stream."""
        return [self._at(position) for position in range(cursor, cursor + count)]

    def _at(self, position: int) -> Row:
        epoch, offset = divmod(position, len(self._rows))
        if epoch != self._epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._order = generator.permutation(len(self._rows))
            self._epoch = epoch
        return self._rows[int(self._order[offset])]


def columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the extra columns of rows, by name; what a row lacks is None."""
    names = dict.fromkeys(name for row in rows for name in row if name != "prompt")
    return {name: [row.get(name) for row in rows] for name in names}
