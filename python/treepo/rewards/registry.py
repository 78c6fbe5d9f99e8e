"""Reward functions by name."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType

from treepo.errors import RewardError
from treepo.rewards.exact import exact_match
from treepo.rewards.gym import gym, gym_partial
from treepo.rewards.math import boxed, last_number
from treepo.rewards.symbolic import math_verify

REWARDS: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        "exact_match": exact_match,
        "last_number": last_number,
        "boxed": boxed,
        "math_verify": math_verify,
        "gym": gym,
        "gym_partial": gym_partial,
    }
)
"""The reward functions of treepo, by the name that a configuration uses."""


def resolve(name: str) -> Callable[..., object]:
    """Find a reward function.

    Args:
        name: A key of `REWARDS`, or `package.module:function`; modules in the current folder are
            found too.

    Returns:
        The function.

    Raises:
        RewardError: There is no such reward, module or function, or it cannot be called.
    """
    if name in REWARDS:
        return REWARDS[name]
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        close = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f"did you mean {close[0]}" if close else f"known: {', '.join(REWARDS)}"
        raise RewardError(
            f"unknown reward {name!r}, {hint}, or name yours 'package.module:function'"
        )
    found: object = _import(module_name, name)
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise RewardError(f"reward {name!r}: {module_name} has no {path}") from None
    if not callable(found):
        raise RewardError(f"reward {name!r} is a {type(found).__name__}, not a function")
    return found


def _import(module_name: str, reward_name: str) -> object:
    here = os.getcwd()
    is_added = here not in sys.path and "" not in sys.path
    if is_added:
        sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        raise RewardError(
            f"reward {reward_name!r}: importing {module_name} failed with "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        if is_added and here in sys.path:
            sys.path.remove(here)
