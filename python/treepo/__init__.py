"""Sample and train language models on trees of answers.

Three entry points, each usable alone: `treepo.Trainer` (and `treepo train`), `treepo.Engine` (and
`treepo rollout`), and `treepo.core` with `treepo.advantages` for programs that own another
inference stack or trainer. Importing the package loads numpy only; torch is loaded with `Engine`
or `Trainer`, which need the `train` extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treepo import core
from treepo.advantages import advantages
from treepo.config import EngineConfig, SamplingParams, SearchConfig, TrainConfig
from treepo.core import __version__
from treepo.errors import TreepoError
from treepo.forest import Forest

if TYPE_CHECKING:
    from treepo.engine import Engine
    from treepo.train import Trainer

__all__ = [
    "Engine",
    "EngineConfig",
    "Forest",
    "SamplingParams",
    "SearchConfig",
    "TrainConfig",
    "Trainer",
    "TreepoError",
    "__version__",
    "advantages",
    "core",
]

_LAZY = {"Engine": "treepo.engine", "Trainer": "treepo.train"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        message = f"module 'treepo' has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        message = f"treepo.{name} needs {error.name}: pip install 'treepo[train]'"
        raise ImportError(message, name=error.name) from error
