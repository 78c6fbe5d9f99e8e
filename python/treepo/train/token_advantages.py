"""Advantages of trajectory tokens and their weights in the loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from treepo.advantages import Credit
from treepo.config import Average
from treepo.errors import InvalidInputError
from treepo.forest import Forest
from treepo.train.pack import PackedForest

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAdvantages:
    """Advantages of packed trajectory tokens, and their weights in the loss.

    Attributes:
        values: advantage of each entry of `PackedForest.src`, f64[S].
        weights: weight of each, f64[S].
        total_weight: what they add to the divisor of the optimizer step's loss.
    """

    values: F64
    weights: F64
    total_weight: float

    @classmethod
    def of_paths(cls, packed: PackedForest, advantages: npt.ArrayLike) -> Self:
        """Gives all tokens of a path its advantage, with weight 1.

        Args:
            packed: the trees.
            advantages: one advantage a path of the forest that was packed, float[P].

        Raises:
            InvalidInputError: if a path has none.
        """
        per_path = np.asarray(advantages, dtype=np.float64)
        if len(per_path) <= packed.src_path.max(initial=-1):
            raise InvalidInputError(
                f"{len(per_path)} advantages for path {packed.src_path.max()}: pass one a path of "
                f"the forest that was packed"
            )
        count = len(packed.src_path)
        values = per_path[packed.src_path]
        return cls(values=values, weights=np.ones(count), total_weight=float(count))

    @classmethod
    def of_credit(cls, packed: PackedForest, forest: Forest, credit: Credit) -> Self:
        """Reads off a credit what each token has in its trajectory.

        Args:
            packed: the trees.
            forest: the forest that was packed.
            credit: its credit.
        """
        token = packed.token_index[packed.target[packed.src]]
        values, weights = credit.at(forest, packed.src_path, token)
        return cls(values=values, weights=weights, total_weight=float(weights.sum()))

    def averaged(self, packed: PackedForest, average: Average, max_tokens: int) -> Self:
        """Returns them with the weights that make the loss another mean.

        Args:
            packed: the trees.
            average: what the loss is a mean over; from a mean over tokens.
            max_tokens: tokens that a trajectory could have sampled at most.
        """
        if average is Average.TOKENS:
            return self
        trajectory = numbered(packed.src_path)
        lengths = np.bincount(trajectory)
        if average is Average.MAX_TOKENS:
            return replace(self, total_weight=float(len(lengths) * max_tokens))
        # Not by the sum of weights: those by which trajectories count would cancel.
        weights = self.weights / lengths[trajectory]
        return replace(self, weights=weights, total_weight=float(weights.sum()))


def numbered(paths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Numbers the paths that occur from 0 on."""
    numbers: npt.NDArray[np.int64] = np.unique(paths, return_inverse=True)[1].astype(np.int64)
    return numbers
