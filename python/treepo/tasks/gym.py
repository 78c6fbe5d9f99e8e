"""Prompts from the tasks of reasoning-gym (the extra `gym`): made by code, no download."""

import ast
import difflib
from typing import Any

from treepo.config import GymConfig
from treepo.errors import DataError, InvalidConfigError

_INSTRUCTION = "Write the final answer as <answer>...</answer>."


def gym_rows(config: GymConfig, seed: int, count: int) -> list[dict[str, Any]]:
    """Return rows of a task: `prompt` (messages), `task`, `entry` and `answer`.

    Args:
        config: The task and its options.
        seed: Another seed gives other items; training and evaluation have different ones.
        count: Number of rows.

    Raises:
        InvalidConfigError: There is no such task, it does not take an option, or reasoning-gym
            is not there.
        DataError: The task cannot make so many items.
    """
    name = config.task
    if name is None:
        raise InvalidConfigError("data.gym.task must name a task of reasoning-gym")
    dataset = _dataset(name, _options(config), seed, count)
    try:
        items = [dataset[index] for index in range(count)]
    except (IndexError, ValueError, RuntimeError) as error:
        raise DataError(f"reasoning-gym's {name} made no {count} items: {error}") from None
    return [
        {
            "prompt": [{"role": "user", "content": f"{item['question']}\n{_INSTRUCTION}"}],
            "task": name,
            "entry": dict(item),
            "answer": item["answer"],
        }
        for item in items
    ]


def _options(config: GymConfig) -> dict[str, Any]:
    """Return the options with their values read as Python's, else as texts."""
    found: dict[str, Any] = {}
    for option in config.options:
        key, _, text = option.partition("=")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found


def _dataset(name: str, options: dict[str, Any], seed: int, count: int) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError:
        raise InvalidConfigError(
            f"data.gym.task = {name} needs reasoning-gym: pip install 'treepo[gym]'"
        ) from None
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f", did you mean {close[0]}" if close else ""
        raise InvalidConfigError(f"reasoning-gym has no task {name!r}{hint}")
    try:
        return reasoning_gym.create_dataset(name, size=count, seed=seed, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise InvalidConfigError(f"data.gym.options of {name}: {error}") from None
