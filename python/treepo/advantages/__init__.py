"""Advantages: what a trajectory's reward says about it, compared with those around it.

A reward is compared with groups of trajectories that share a beginning. `credit` does so for a
whole forest at once, for trajectories or for the nodes of the tree; an estimator is a row of
`PRESETS`.
"""

from treepo.advantages.estimator import Credit, advantages, credit, find_preset
from treepo.advantages.nodes import num_sampled_tokens
from treepo.advantages.presets import (
    PRESETS,
    AncestorGroups,
    Backup,
    Baseline,
    Counting,
    Leaves,
    Level,
    Multiplicity,
    Pooling,
    Preset,
    Scale,
)
from treepo.advantages.scale import whiten

__all__ = [
    "PRESETS",
    "AncestorGroups",
    "Backup",
    "Baseline",
    "Counting",
    "Credit",
    "Leaves",
    "Level",
    "Multiplicity",
    "Pooling",
    "Preset",
    "Scale",
    "advantages",
    "credit",
    "find_preset",
    "num_sampled_tokens",
    "whiten",
]
