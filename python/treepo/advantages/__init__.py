"""Advantages: what a trajectory's reward says about it, compared with those around it.

A reward is compared with groups of trajectories that share a beginning. `advantages` does so for a
whole forest at once; an estimator is a row of `PRESETS`.
"""

from treepo.advantages.baseline import whiten
from treepo.advantages.estimator import advantages, find_preset
from treepo.advantages.nodes import num_sampled_tokens
from treepo.advantages.presets import PRESETS, Groups, Preset, Scale

__all__ = [
    "PRESETS",
    "Groups",
    "Preset",
    "Scale",
    "advantages",
    "find_preset",
    "num_sampled_tokens",
    "whiten",
]
