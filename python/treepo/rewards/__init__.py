"""Rewards: what a completion is worth.

`REWARDS` holds the functions that come with treepo, `resolve` finds any by name, and `RewardRunner`
calls one in worker processes under a time limit.
"""

from treepo.rewards.base import Completion, RewardFunction, completion_text
from treepo.rewards.exact import exact_match
from treepo.rewards.math import boxed, last_number
from treepo.rewards.registry import REWARDS, resolve
from treepo.rewards.runner import RewardResult, RewardRunner, check_columns

__all__ = [
    "REWARDS",
    "Completion",
    "RewardFunction",
    "RewardResult",
    "RewardRunner",
    "boxed",
    "check_columns",
    "completion_text",
    "exact_match",
    "last_number",
    "resolve",
]
