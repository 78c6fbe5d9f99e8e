"""Rows of a data set in the order that training reads them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from treepo.errors import DataError, InvalidInputError, PromptTooLongError
from treepo.prompts import Prompt

Row = Mapping[str, Any]
_MAX_NAMED_ROWS = 5


def check_rows(
    rows: Sequence[Row], encode: Callable[[Prompt], object], name: str, indices: Iterable[int]
) -> None:
    """Check before a run that rows have prompts which the model can continue.

    Args:
        rows: The data set.
        encode: Turns a prompt into token ids, as `Engine.token_ids` does.
        name: What the data set is called in the message.
        indices: The rows that will be read.

    Raises:
        DataError: Rows cannot be used; up to five are named with the reason.
    """
    problems = ((index, _problem(rows[index], encode)) for index in indices)
    bad = [f"row {index}: {problem}" for index, problem in problems if problem]
    if bad:
        more = f"; and {len(bad) - _MAX_NAMED_ROWS} more" if len(bad) > _MAX_NAMED_ROWS else ""
        named = "; ".join(bad[:_MAX_NAMED_ROWS])
        raise DataError(f"the {name} data set cannot be used: {named}{more}; leave such rows out")


def _problem(row: Row, encode: Callable[[Prompt], object]) -> str | None:
    if not isinstance(row, Mapping):
        return f"it is a {type(row).__name__}, not a mapping with a 'prompt'"
    if "prompt" not in row:
        return f"it has no 'prompt', it has {list(row)}"
    try:
        encode(row["prompt"])
    except (InvalidInputError, PromptTooLongError) as error:
        return str(error)
    return None


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
            DataError: One has no prompt.
        """
        found = []
        for position in range(cursor, cursor + count):
            row = self._rows[self._index(position)]
            if "prompt" not in row:
                raise DataError(f"{self.name(position)} has no 'prompt'")
            found.append(row)
        return found

    def name(self, cursor: int) -> str:
        """What the row at a position of the stream is called in messages."""
        return f"row {self._index(cursor)} of the training data set"

    def check(self, encode: Callable[[Prompt], object], count: int) -> None:
        """Check the first `count` rows of the stream; see `check_rows`."""
        chosen = map(self._index, range(min(count, len(self._rows))))
        check_rows(self._rows, encode, "training", sorted(chosen))

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._rows))
        if epoch != self._epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._order = generator.permutation(len(self._rows))
            self._epoch = epoch
        return int(self._order[offset])
