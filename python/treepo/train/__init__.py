"""Training on trees: pack a forest, one exact loss, one optimizer step after another.

The names below load on first use, so that importing this package loads no torch.
`treepo.train.pack.pack` is the packing function; it is not exported here because the
submodule has the same name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treepo.train.attention import DensePackedContext, PackedContext
    from treepo.train.check import first_step_check
    from treepo.train.contexts import packed_context
    from treepo.train.head import Head, output_head, token_logprobs
    from treepo.train.losses import LossTerms, policy_loss
    from treepo.train.objective import Fixed
    from treepo.train.pack import PackedForest, microbatches
    from treepo.train.step import TrainStep
    from treepo.train.step_metrics import StepMetrics
    from treepo.train.token_advantages import TokenAdvantages
    from treepo.train.trainer import Trainer

_MODULES = {
    "DensePackedContext": "treepo.train.attention",
    "PackedContext": "treepo.train.attention",
    "packed_context": "treepo.train.contexts",
    "Head": "treepo.train.head",
    "output_head": "treepo.train.head",
    "Fixed": "treepo.train.objective",
    "LossTerms": "treepo.train.losses",
    "policy_loss": "treepo.train.losses",
    "token_logprobs": "treepo.train.head",
    "PackedForest": "treepo.train.pack",
    "microbatches": "treepo.train.pack",
    "StepMetrics": "treepo.train.step_metrics",
    "TokenAdvantages": "treepo.train.token_advantages",
    "TrainStep": "treepo.train.step",
    "first_step_check": "treepo.train.check",
    "Trainer": "treepo.train.trainer",
}

__all__ = [
    "DensePackedContext",
    "Fixed",
    "Head",
    "LossTerms",
    "PackedContext",
    "PackedForest",
    "StepMetrics",
    "TokenAdvantages",
    "TrainStep",
    "Trainer",
    "first_step_check",
    "microbatches",
    "output_head",
    "packed_context",
    "policy_loss",
    "token_logprobs",
]


def __getattr__(name: str) -> Any:
    """Loads the module that defines `name`."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
