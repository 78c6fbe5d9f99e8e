"""Sampling: an unmodified Hugging Face causal LM on a paged KV pool."""

from treepo.engine.engine import Engine
from treepo.engine.hook import AttentionContext, KVShapes, install, plain_attention, probe
from treepo.engine.open_rollout import OpenRollout
from treepo.engine.stats import EngineStats
from treepo.engine.texts import token_texts
from treepo.engine.verdicts import Continue, Judge, Prune, Stop, Verdict

__all__ = [
    "AttentionContext",
    "Continue",
    "Engine",
    "EngineStats",
    "Judge",
    "KVShapes",
    "OpenRollout",
    "Prune",
    "Stop",
    "Verdict",
    "install",
    "plain_attention",
    "probe",
    "token_texts",
]
