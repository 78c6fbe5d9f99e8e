"""Advantage estimators as data: a preset says which parts make up an estimator.

Notation: T is a tree, s one of its nodes, p(s) the parent, root(s) the root, L(s) the leaves below
s or s itself, R_l the reward of leaf l, V(s) the value of a node, A(s) its advantage. Nodes are
runs of tokens between forks and ends of segments (`treepo.forest.Nodes`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Level(StrEnum):
    """What has one advantage."""

    TRAJECTORY = "trajectory"
    """All tokens of a trajectory: A_l. A token that several trajectories share has one for each."""
    NODE = "node"
    """All tokens of a node: A(s), whichever trajectory they are read in."""
    TOKEN = "token"
    """All tokens of a node within one trajectory: A(l, s)."""


class Leaves(StrEnum):
    """Value of a leaf."""

    REWARD = "reward"
    """R_l."""
    GROUP_Z = "group_z"
    """(R_l - mean) / (std + 1e-6) over the leaves of the tree, std with n - 1."""
    GROUP_Z_OVER_ALL = "group_z_over_all"
    """As group_z, std with n."""
    ANCESTORS = "ancestors"
    """R_l minus the means of its ancestors' leaves, pooled as `Preset.ancestors` says."""


class Backup(StrEnum):
    """Value of an inner node."""

    LEAF_MEAN = "leaf_mean"
    """Mean over L(s)."""
    CHILD_MEAN = "child_mean"
    """Mean over the children; on an uneven tree another number than the mean over leaves."""
    CHILD_SOFTMAX = "child_softmax"
    """Mean over the children, weighted by softmax of the log-probs of their first segments."""
    DECAYED = "decayed"
    """Mean over L(s) of 0.95^d R_l, d the number of nodes from s down to the leaf."""


class Baseline(StrEnum):
    """What is subtracted from a value; with several, the differences are added."""

    ROOT = "root"
    """V(root(s)); for a trajectory the mean reward of its tree, 0 if it is the only one."""
    PARENT = "parent"
    """V(p(s))."""
    SIBLINGS = "siblings"
    """Mean of V over the children of p(s), s included."""
    ANCESTORS = "ancestors"
    """For a trajectory: the means over the leaves of each ancestor, pooled as `Preset.ancestors`
    says. For a node: the mean of V over its ancestors."""
    LEAVE_ONE_OUT = "leave_one_out"
    """Mean reward of the tree's leaves that are not in L(s). A node that all leaves are below has
    nothing to be compared with: A = 0. The only trajectory of a tree keeps its reward."""
    NOTHING = "nothing"
    """0."""


class Scale(StrEnum):
    """What the differences are divided by."""

    NONE = "none"
    """Nothing."""
    GROUP_STD = "group_std"
    """Standard deviation of the rewards of the tree (n - 1) plus 1e-6."""
    GROUP_AND_BRANCH_STD = "group_and_branch_std"
    """The sum of two z-scores: within the tree, and within the subtree of the root's child."""
    SIBLING_STD = "sibling_std"
    """Standard deviation of V over the children of p(s) (n) plus 1e-8; 0 where they agree."""
    SQRT_LEAVES = "sqrt_leaves"
    """Square root of the size of L(s)."""
    DEPTH_Z = "depth_z"
    """Mean 0 and variance 1 (n - 1) over the nodes of a tree with the same number of ancestors."""
    BATCH_TOKENS = "batch_tokens"
    """Whitened over all sampled tokens of the forest, see `treepo.advantages.whiten`."""


class Multiplicity(StrEnum):
    """Weight in the loss of a token that n trajectories share, each time that it occurs."""

    EVERY_TRAJECTORY = "every_trajectory"
    """1: the token has n times the weight of one that is not shared."""
    ONCE = "once"
    """1 / n: each unique token has the same weight."""
    SQRT = "sqrt"
    """1 / sqrt(n): in between."""


class Counting(StrEnum):
    """How much a leaf counts in the means over leaves, and its tokens in the loss."""

    ALIKE = "alike"
    """1."""
    INCLUSION = "inclusion"
    """Its inclusion weight (`Paths.weight`): where a tree gave one continuation more leaves than
    another of the same place, each still has its share (Horvitz and Thompson, 1952)."""


class Pooling(StrEnum):
    """Weight of an ancestor's group of leaves among those of all ancestors."""

    EQUAL = "equal"
    """1."""
    SIZE = "size"
    """The number of its leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AncestorGroups:
    """Which groups a leaf is compared with: the leaves below each of its ancestors.

    A stem that does not branch counts once for each of its
    segments.

    Attributes:
        pooling: Weights of the groups.
        has_root: Whether the leaves of the whole tree are a group; it counts always, even alone.
        has_uniform: Whether a group below the root counts whose rewards all agree.
        has_singles: Whether groups of one leaf count, the leaf itself among them, which pulls
            towards 0; else a group has more than one.
    """

    pooling: Pooling = Pooling.EQUAL
    has_root: bool = True
    has_uniform: bool = True
    has_singles: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """An estimator.

    Attributes:
        formula: The advantage, in the notation of this file.
        source: Where the estimator is from, and how sure that is.
        level: What has one advantage.
        baselines: What values are compared with.
        leaves: Values of leaves.
        backup: Values of inner nodes.
        ancestors: Groups where leaves or baselines are about ancestors.
        is_sibling_normalized: Whether values are z-scores among siblings before they are compared;
            only children keep theirs.
        has_root_value: Whether the root has a value; else it counts as 0.
        scale: The normalisation.
        multiplicity: Weights of shared tokens.
        parent_fade: For the level token: V(p(s)) counts by this to the power of the nodes from s
            down to the trajectory's leaf, s included.
        counting: How much a leaf counts; by inclusion for nodes with the backup of leaf means and
            the baselines leave_one_out and nothing.
        alias_of: The preset that this one equals on every forest.
    """

    formula: str
    source: str
    level: Level = Level.TRAJECTORY
    baselines: tuple[Baseline, ...]
    leaves: Leaves = Leaves.REWARD
    backup: Backup = Backup.LEAF_MEAN
    ancestors: AncestorGroups = AncestorGroups()
    is_sibling_normalized: bool = False
    has_root_value: bool = True
    scale: Scale = Scale.NONE
    multiplicity: Multiplicity = Multiplicity.EVERY_TRAJECTORY
    counting: Counting = Counting.ALIKE
    parent_fade: float = 1.0
    alias_of: str | None = None


_TREEPO = "arXiv 2508.17445"
_TREEPO_CODE = f"{_TREEPO}, published code"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "treepo": Preset(
            formula="mean over groups G of l of (R_l - mean_G), whitened over tokens",
            source=f"TreePO, {_TREEPO}, equation 5, normalised as in its published code",
            baselines=(Baseline.ANCESTORS,),
            scale=Scale.BATCH_TOKENS,
        ),
        "treepo_size_weighted": Preset(
            formula="sum of |G| (R_l - mean_G) / sum of |G|, whitened over tokens",
            source=f"TreePO, {_TREEPO}, equation 6, normalised as in its published code",
            baselines=(Baseline.ANCESTORS,),
            ancestors=AncestorGroups(pooling=Pooling.SIZE),
            scale=Scale.BATCH_TOKENS,
        ),
        "treepo_with_rejection": Preset(
            formula="as treepo_size_weighted, without groups below the root whose rewards agree",
            source=f"TreePO, {_TREEPO}, equation 7, normalised as in its published code",
            baselines=(Baseline.ANCESTORS,),
            ancestors=AncestorGroups(pooling=Pooling.SIZE, has_uniform=False),
            scale=Scale.BATCH_TOKENS,
        ),
        "treepo_without_root": Preset(
            formula="as treepo_size_weighted, without the group of the tree; 0 without groups",
            source=f"TreePO, {_TREEPO}, section 4.2; not in its published code",
            baselines=(Baseline.ANCESTORS,),
            ancestors=AncestorGroups(pooling=Pooling.SIZE, has_root=False),
            scale=Scale.BATCH_TOKENS,
        ),
        "treepo_segment": Preset(
            formula="V(s) - V(p(s)), V(root) = 0, leaves as treepo_size_weighted with groups of "
            "one, whitened over tokens",
            source=f"{_TREEPO_CODE}: tree_segment_reinforce_plus_plus_baseline",
            level=Level.NODE,
            baselines=(Baseline.PARENT,),
            leaves=Leaves.ANCESTORS,
            backup=Backup.CHILD_MEAN,
            ancestors=AncestorGroups(pooling=Pooling.SIZE, has_singles=True),
            has_root_value=False,
            scale=Scale.BATCH_TOKENS,
        ),
        "treepo_segment_faded": Preset(
            formula="V(s) - 0.5^d V(p(s)), d the nodes from s to l, else as treepo_segment",
            source=f"{_TREEPO_CODE}: tree_segment_reinforce_plus_plus_baseline with eta = 0.5",
            level=Level.TOKEN,
            baselines=(Baseline.PARENT,),
            leaves=Leaves.ANCESTORS,
            backup=Backup.CHILD_MEAN,
            ancestors=AncestorGroups(pooling=Pooling.SIZE, has_singles=True),
            has_root_value=False,
            scale=Scale.BATCH_TOKENS,
            parent_fade=0.5,
        ),
        "treepo_spo": Preset(
            formula="z(s) - z(p(s)), z the z-score of V among siblings, z(root) = 0",
            source=f"{_TREEPO_CODE}: spo. Signs can turn: parent and child are scaled differently",
            level=Level.NODE,
            baselines=(Baseline.PARENT,),
            backup=Backup.CHILD_MEAN,
            is_sibling_normalized=True,
            has_root_value=False,
        ),
        "spo_tree": Preset(
            formula="V(s) - V(p(s)), each unique token once",
            source="SPO-tree, arXiv 2505.23564, published code: rloo",
            level=Level.NODE,
            baselines=(Baseline.PARENT,),
            backup=Backup.CHILD_MEAN,
            multiplicity=Multiplicity.ONCE,
        ),
        "treerl": Preset(
            formula="((V(s) - V(root)) + (V(s) - V(p(s)))) / sqrt(|L(s)|)",
            source="TreeRL, arXiv 2506.11902, the formula of the paper, which is also AttnRL's "
            "published code, arXiv 2509.26628; TreeRL's own code differs (docs/advantages.md)",
            level=Level.NODE,
            baselines=(Baseline.ROOT, Baseline.PARENT),
            scale=Scale.SQRT_LEAVES,
        ),
        "treerpo": Preset(
            formula="(V(s) - mean of siblings) / std of siblings, 0 where they agree",
            source="TreeRPO, arXiv 2506.05183; the scale is recalled, its code was not found; the "
            "numbers are those of SPO-tree's published code: grpo",
            level=Level.NODE,
            baselines=(Baseline.SIBLINGS,),
            backup=Backup.CHILD_MEAN,
            scale=Scale.SIBLING_STD,
        ),
        "tree_grpo": Preset(
            formula="z(R_l) in the tree + z(R_l) below its branch of the root",
            source="Tree-GRPO, arXiv 2509.21240, published code: tree; its trees of one prompt are "
            "the branches of the root here. Alone in its branch a leaf has 0 from it, there R_l",
            baselines=(Baseline.ROOT,),
            scale=Scale.GROUP_AND_BRANCH_STD,
        ),
        "at2po": Preset(
            formula="V(s), leaves z(R_l) in the tree, deviation over n",
            source="AT2PO, arXiv 2601.04767, published code: leaf_value_norm, child_mean, "
            "node_value; its script weights children by the softmax of their surprisal instead",
            level=Level.NODE,
            baselines=(Baseline.NOTHING,),
            leaves=Leaves.GROUP_Z_OVER_ALL,
            backup=Backup.CHILD_MEAN,
        ),
        "treeadv": Preset(
            formula="mean over L(s) of z(R_l) in the tree",
            source="TreeAdv, arXiv 2601.03703; exact weights not published",
            level=Level.NODE,
            baselines=(Baseline.NOTHING,),
            leaves=Leaves.GROUP_Z,
        ),
        "branchgrpo": Preset(
            formula="z-score of V(s) among the nodes of its depth in the tree",
            source="BranchGRPO, arXiv 2509.06040, published code: tree_prob_weighted; its script "
            "leaves that off: leaf means",
            level=Level.NODE,
            baselines=(Baseline.NOTHING,),
            backup=Backup.CHILD_SOFTMAX,
            scale=Scale.DEPTH_Z,
        ),
        "vineppo": Preset(
            formula="V(s) - V(p(s))",
            source="VinePPO, arXiv 2410.01679, published code; the tree's own leaves stand in for "
            "fresh rollouts",
            level=Level.NODE,
            baselines=(Baseline.PARENT,),
        ),
        "deepsearch": Preset(
            formula="V(s) - mean of siblings",
            source="in the style of DeepSearch, arXiv 2509.25454: rewards fade towards the root",
            level=Level.NODE,
            baselines=(Baseline.SIBLINGS,),
            backup=Backup.DECAYED,
        ),
        "grpo": Preset(
            formula="(R_l - mean) / (std + 1e-6) over the tree",
            source="GRPO, arXiv 2402.03300, section 4.1.2",
            baselines=(Baseline.ROOT,),
            scale=Scale.GROUP_STD,
        ),
        "dr_grpo": Preset(
            formula="R_l - mean over the tree",
            source="Dr. GRPO, arXiv 2503.20783",
            baselines=(Baseline.ROOT,),
        ),
        "rloo": Preset(
            formula="R_l - mean over the other leaves of the tree",
            source="RLOO, arXiv 2402.14740",
            baselines=(Baseline.LEAVE_ONE_OUT,),
        ),
        "tree_rloo": Preset(
            formula="mean over L(s) - mean over the other leaves of the tree, all by inclusion "
            "weight",
            source="treepo: RLOO for nodes. The gradient is unbiased where forks depend on what "
            "is before them only, see docs/lab.md",
            level=Level.NODE,
            baselines=(Baseline.LEAVE_ONE_OUT,),
            counting=Counting.INCLUSION,
        ),
        "reinforce_plus_plus": Preset(
            formula="R_l - mean over the tree, whitened over tokens",
            source="REINFORCE++ with baseline, arXiv 2501.03262",
            baselines=(Baseline.ROOT,),
            scale=Scale.BATCH_TOKENS,
        ),
    }
)
"""All presets by name."""
