"""Advantage estimators as data: a preset says which parts make up an estimator."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Groups(StrEnum):
    """Whose mean reward a trajectory is compared with."""

    ROOT = "root"
    """All leaves of the tree."""
    ANCESTORS = "ancestors"
    """The leaves below each node on the way to the trajectory; the differences are averaged. The
    root counts always, another node only if it has more than one leaf. A stem that does not branch
    counts once for each of its segments."""


class Scale(StrEnum):
    """What the differences are divided by."""

    GROUP_STD = "group_std"
    """Standard deviation of the rewards of the tree (n - 1) plus 1e-6."""
    BATCH_TOKENS = "batch_tokens"
    """Whitened over all sampled tokens of the forest, see `treepo.advantages.whiten`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """An estimator.

    Attributes:
        groups: The baseline.
        scale: The normalisation.
        source: Paper that the estimator is from.
    """

    groups: Groups
    scale: Scale
    source: str


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "treepo": Preset(
            groups=Groups.ANCESTORS,
            scale=Scale.BATCH_TOKENS,
            source="TreePO, arXiv 2508.17445, equation 5, normalised as in its published code",
        ),
        "grpo": Preset(
            groups=Groups.ROOT,
            scale=Scale.GROUP_STD,
            source="GRPO, arXiv 2402.03300, section 4.1.2",
        ),
    }
)
"""All presets by name."""
