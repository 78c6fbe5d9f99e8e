"""The Rust core: forest, search, block pool, scheduler and CPU kernels, without torch.

This module alone loads the extension. Embed `Search` at segment granularity over any function
that continues token sequences, or `Scheduler` at token granularity over an engine with a paged
key-value cache.
"""

from treepo._core import (
    Activation,
    AttentionLayer,
    AttentionStep,
    BlockPool,
    BufferTooSmallError,
    DecoderLayer,
    DecoderModel,
    Element,
    Forest,
    InvalidConfigError,
    InvalidInputError,
    Kernels,
    LawBrokenError,
    NotFiniteError,
    PoolTooSmallError,
    PromptTooLongError,
    Scheduler,
    Search,
    SearchConfig,
    TreepoError,
    __version__,
    forecast,
)
from treepo.core.groups import GroupBuffers
from treepo.core.plan import PlanBuffers, PlanSizes

__all__ = [
    "Activation",
    "AttentionLayer",
    "AttentionStep",
    "DecoderLayer",
    "DecoderModel",
    "BlockPool",
    "BufferTooSmallError",
    "Element",
    "Forest",
    "GroupBuffers",
    "InvalidConfigError",
    "InvalidInputError",
    "Kernels",
    "LawBrokenError",
    "NotFiniteError",
    "PlanBuffers",
    "PlanSizes",
    "PoolTooSmallError",
    "PromptTooLongError",
    "Scheduler",
    "Search",
    "SearchConfig",
    "TreepoError",
    "__version__",
    "forecast",
]
