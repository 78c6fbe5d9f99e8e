"""Rewards for the tasks of reasoning-gym (the extra `gym`), see `treepo.tasks.gym`.

The library gives partial credit for wrong answers and for none at all, and some of its scores fail
on texts they do not expect. So an answer is what stands in the last `<answer>..</answer>`, none is
worth 0, and so is one whose score fails.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from treepo.errors import RewardError
from treepo.rewards.base import Completion, completion_text, prepared_by

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def _library() -> Any:
    try:
        import reasoning_gym as library
    except ModuleNotFoundError:
        raise RewardError("the reward gym needs reasoning-gym: pip install 'treepo[gym]'") from None
    return library


@prepared_by(_library)
def gym(
    *,
    completions: Sequence[Completion],
    task: Sequence[str],
    entry: Sequence[Mapping[str, Any]],
    **columns: Sequence[object],  # noqa: ARG001 - reward functions are given every column
) -> list[float]:
    """Reward 1 for an answer that the task scores with its full score, else 0.

    Args:
        completions: Texts or message lists.
        task: Names of tasks.
        entry: Their items: question, answer and metadata.
        columns: Unused.

    Returns:
        A reward for each completion.

    Raises:
        RewardError: reasoning-gym is not there, or there is no such task.
    """
    return [float(score >= 1.0) for score in _scores(completions, task, entry)]


@prepared_by(_library)
def gym_partial(
    *,
    completions: Sequence[Completion],
    task: Sequence[str],
    entry: Sequence[Mapping[str, Any]],
    **columns: Sequence[object],  # noqa: ARG001
) -> list[float]:
    """Reward the task's own score, from 0 to 1; arguments and errors as in `gym`."""
    return _scores(completions, task, entry)


def _scores(
    completions: Sequence[Completion], task: Sequence[str], entry: Sequence[Mapping[str, Any]]
) -> list[float]:
    return [
        _score(_score_function(name), completion_text(completion), item)
        for completion, name, item in zip(completions, task, entry, strict=True)
    ]


def _score(function: Callable[..., float], text: str, item: Mapping[str, Any]) -> float:
    answers = _ANSWER.findall(text)
    if not answers:
        return 0.0
    try:
        return float(function(answer=answers[-1].strip(), entry=dict(item)))
    except Exception:
        return 0.0  # The library's scores raise whatever a text makes them raise.


@cache
def _score_function(name: str) -> Callable[..., float]:
    library = _library()
    try:
        function: Callable[..., float] = library.get_score_answer_fn(name)
    except ValueError as error:
        raise RewardError(f"reasoning-gym: {error}") from None
    return function
