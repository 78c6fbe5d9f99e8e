"""Sampling: an unmodified Hugging Face causal LM on a paged KV pool."""

from treepo.engine.engine import Engine
from treepo.engine.hook import AttentionContext, KVShapes, install, plain_attention, probe
from treepo.engine.stats import EngineStats

__all__ = [
    "AttentionContext",
    "Engine",
    "EngineStats",
    "KVShapes",
    "install",
    "plain_attention",
    "probe",
]
