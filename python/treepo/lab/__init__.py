"""What the estimators of `treepo.advantages` estimate, where the truth is known.

A policy small enough to enumerate has an exact gradient. Trees of it are sampled by the real
search, and the gradient that a preset gives is held against the exact one: bias, and variance for
each sampled token. numpy only; `plots` needs matplotlib.
"""

from treepo.lab.estimate import Quality, gradients, quality
from treepo.lab.exact import Exact, solve
from treepo.lab.experiment import SEARCHES, Row, compare
from treepo.lab.policy import TabularPolicy, random_policy
from treepo.lab.sampler import grow
from treepo.lab.trap import TrapResult, spring

__all__ = [
    "SEARCHES",
    "Exact",
    "Quality",
    "Row",
    "TabularPolicy",
    "TrapResult",
    "compare",
    "gradients",
    "grow",
    "quality",
    "random_policy",
    "solve",
    "spring",
]
