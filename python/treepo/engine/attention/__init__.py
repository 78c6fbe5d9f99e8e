"""Attention back ends over the paged KV pool."""

from treepo.engine.attention.base import AttentionBackend, Feature, LayerCall, check_features
from treepo.engine.attention.choose import make_backend
from treepo.engine.attention.native import NativeBackend
from treepo.engine.attention.paged import PagedContext
from treepo.engine.attention.torch_backend import TorchBackend

__all__ = [
    "AttentionBackend",
    "Feature",
    "LayerCall",
    "NativeBackend",
    "PagedContext",
    "TorchBackend",
    "check_features",
    "make_backend",
]
