r"""Reward for mathematical expressions, by the library math-verify (the extra `math`).

Only the last complete `\boxed{..}` is looked at: left to itself the library also takes any number
of a text, so that an answer that lists many would be right. Its own time limits are off, since they
work in a main thread only; the worker's limit holds, and what runs into it is missing, not wrong.
"""

from collections.abc import Sequence
from typing import Any

from treepo.errors import RewardError
from treepo.rewards.base import Completion, answer_text, completion_text, prepared_by
from treepo.rewards.math import find_last_boxed


def _parse(library: Any, text: str) -> Any:
    boxed = find_last_boxed(text)
    content = text if boxed is None else boxed
    configs = [library.LatexExtractionConfig(boxed_match_priority=0)]
    return library.parse(rf"\boxed{{{content}}}", configs, parsing_timeout=None)


def _library() -> Any:
    try:
        import math_verify as library
    except ModuleNotFoundError:
        raise RewardError(
            "the reward math_verify needs the library: pip install 'treepo[math]'"
        ) from None
    return library


def _prepare() -> None:
    _parse(_library(), "1")


@prepared_by(_prepare)
def math_verify(
    *,
    completions: Sequence[Completion],
    answer: Sequence[object],
    **columns: Sequence[object],  # noqa: ARG001 - reward functions are given every column
) -> list[float]:
    r"""Reward 1 if the last `\boxed{..}` of a completion equals the answer as an expression.

    `1/2` equals `0.5`, `x+1` equals `1+x`, `\{1,2\}` equals `\{2,1\}`.

    Args:
        completions: Texts or message lists.
        answer: LaTeX, with or without a `\boxed{..}` of its own.
        columns: Unused.

    Returns:
        A reward for each completion; 0 for one without a complete box.

    Raises:
        RewardError: math-verify is not there.
        ValueError: An answer is missing or is no expression.
    """
    library = _library()
    known: dict[str, Any] = {}
    rewards = []
    for completion, right in zip(completions, answer, strict=True):
        gold = answer_text(right)
        if gold not in known:
            known[gold] = _parse(library, gold)
            if not known[gold]:
                raise ValueError(f"the answer {gold!r} is no expression")
        found = find_last_boxed(completion_text(completion))
        parsed = [] if found is None else _parse(library, found)
        # The order matters to the library: the right answer comes first.
        is_equal = bool(parsed) and library.verify(known[gold], parsed, timeout_seconds=None)
        rewards.append(float(is_equal))
    return rewards
