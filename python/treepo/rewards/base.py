"""What a reward function is.

The signature is the one of TRL's reward functions, so that a function written for either works
with both: everything is passed by keyword, and the columns of the data set arrive under their own
names.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from treepo.errors import RewardError

Completion = str | Sequence[Mapping[str, str]]
"""A text, or the assistant's messages where the prompt is a conversation."""


class RewardFunction(Protocol):
    """Scores completions: `f(prompts, completions, completion_ids, **columns)`.

    Returns one number a completion, or None for a completion that it does not judge.
    """

    def __call__(
        self,
        *,
        prompts: Sequence[object],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]],
        **columns: Sequence[object],
    ) -> Sequence[float | None]:
        """Score a batch of completions; all arguments are equally long."""


F = TypeVar("F", bound=Callable[..., Any])


def completion_text(completion: Completion) -> str:
    """Text of a completion; the contents of messages are joined.

    Args:
        completion: A text or a list of messages with `content`.

    Returns:
        The text.
    """
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] for message in completion)


def answer_text(answer: object) -> str:
    """Text of an answer; anything that is not a text is taken by its `str`.

    Args:
        answer: An entry of the column `answer`.

    Returns:
        The text.

    Raises:
        ValueError: There is no answer, so there is nothing to compare with.
    """
    if answer is None:
        raise ValueError("the answer is missing")
    return str(answer)


def prepared_by(prepare: Callable[[], object]) -> Callable[[F], F]:
    """Mark a reward function with what each worker calls once before the first time limit runs.

    A library that takes seconds to import belongs there: it is no completion's fault.
    """

    def mark(function: F) -> F:
        function.prepare = prepare  # type: ignore[attr-defined]
        return function

    return mark


def name_of(function: object) -> str:
    """Name of a reward function for messages."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def call(function: Callable[..., object], arguments: Mapping[str, Sequence[object]]) -> list[float]:
    """Call a reward function and check what it returns.

    Args:
        function: A reward function.
        arguments: `prompts`, `completions`, `completion_ids` and the columns, equally long.

    Returns:
        A finite number for each completion, NaN where the function returns None or NaN.

    Raises:
        RewardError: The function returns something else than one finite number or None a
            completion.
        Exception: Whatever the function raises.
    """
    returned = function(**arguments)
    expected = len(arguments["completions"])
    try:
        values = list(returned)  # type: ignore[call-overload]
    except TypeError:
        raise RewardError(
            f"reward function {name_of(function)} returned {type(returned).__name__}, "
            f"expected a list of {expected} values"
        ) from None
    if len(values) != expected:
        raise RewardError(
            f"reward function {name_of(function)} returned {len(values)} values, "
            f"expected {expected}: one for each completion"
        )
    return [_to_float(value, function) for value in values]


def _to_float(value: object, function: Callable[..., object]) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise RewardError(
            f"reward function {name_of(function)} returned {value!r}, "
            "expected a finite number or None"
        )
    return number
