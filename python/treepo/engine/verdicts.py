"""What a judge says about a segment that has ended."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treepo import core
from treepo.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Continue:
    """The path goes on; `score` is for `branch.by=score` and `prune.by=score`."""

    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Stop:
    """The path ends as a leaf, finish reason stop."""


@dataclass(frozen=True, slots=True)
class Prune:
    """The path is given up, finish reason pruned."""


Verdict = Continue | Stop | Prune
Judge = Callable[[int, npt.NDArray[np.uint32]], Verdict]
"""Takes the index of the tree and the whole path's token ids, uint32 [length], prompt included."""


def report_all(scheduler: core.Scheduler, judge: Judge) -> None:
    """Ask the judge about every segment that waits for a verdict, tree by tree.

    Raises:
        InvalidInputError: If the judge returns something else, or a score that is not finite.
    """
    for tree, path in scheduler.ended_segments().tolist():
        verdict = judge(tree, scheduler.tokens(tree, path))
        match verdict:
            case Continue(score):
                scheduler.report(tree, path, "continue", score=float(score))
            case Stop():
                scheduler.report(tree, path, "stop")
            case Prune():
                scheduler.report(tree, path, "prune")
            case _:
                raise InvalidInputError(
                    f"the judge returned {verdict!r:.60} for a segment of tree {tree}; return "
                    "Continue, Stop or Prune of treepo.engine"
                )
