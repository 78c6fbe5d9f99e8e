"""Exceptions of treepo, one hierarchy: every one is a `TreepoError` and a built-in exception."""

from treepo.core import (
    BufferTooSmallError,
    InvalidConfigError,
    InvalidInputError,
    LawBrokenError,
    NotFiniteError,
    PoolTooSmallError,
    PromptTooLongError,
    TreepoError,
)

__all__ = [
    "BufferTooSmallError",
    "CheckpointError",
    "DataError",
    "GroupError",
    "InvalidConfigError",
    "InvalidInputError",
    "LawBrokenError",
    "NotFiniteError",
    "PoolTooSmallError",
    "PromptTooLongError",
    "RewardError",
    "TreepoError",
    "UnsupportedModelError",
]


class DataError(TreepoError, ValueError):
    """A data file is missing, unreadable, empty or has a bad line."""


class RewardError(TreepoError, ValueError):
    """A reward function is unknown, cannot run in a worker process or breaks its contract."""


class UnsupportedModelError(TreepoError, ValueError):
    """The model's class or one of its features cannot run on treepo's attention hook."""


class CheckpointError(TreepoError, ValueError):
    """A run folder holds no usable checkpoint or does not fit the configuration."""


class GroupError(TreepoError, RuntimeError):
    """A process of a distributed run is gone or did not answer in time."""
