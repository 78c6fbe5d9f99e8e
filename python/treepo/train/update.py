"""The optimizer steps of one rollout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from treepo.advantages import Credit
from treepo.config import Correct, TrainConfig
from treepo.forest import Forest
from treepo.train import optimizer
from treepo.train.group import Group
from treepo.train.metrics import Metrics, update_metrics
from treepo.train.objective import Fixed
from treepo.train.pack import PackedForest, microbatches, pack, tree_sizes
from treepo.train.reference import Reference
from treepo.train.step import TrainStep
from treepo.train.step_metrics import StepMetrics, combine
from treepo.train.token_advantages import TokenAdvantages

if TYPE_CHECKING:
    from treepo.train.sharded import ShardedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Microbatch:
    """Trees that run through the model at once, with all that the loss needs.

    Attributes:
        packed: the trees.
        advantages: advantages and weights of their trajectory tokens.
        fixed: log-probs from before the first optimizer step.
    """

    packed: PackedForest
    advantages: TokenAdvantages
    fixed: Fixed


class Update:
    """Makes the optimizer steps of a rollout: epochs over minibatches of micro-batches."""

    def __init__(
        self,
        step: TrainStep,
        adamw: torch.optim.Optimizer,
        config: TrainConfig,
        reference: Reference | None,
        group: Group | None = None,
        shards: ShardedModel | None = None,
    ) -> None:
        """Takes the parts.

        Args:
            step: forward and backward of a micro-batch, on the model that samples.
            adamw: the optimizer of the model's parameters.
            config: sizes of batches, loss and gradient clipping.
            reference: what the loss holds the policy to; None for nothing.
            group: the processes that share the trees; None for one alone.
            shards: the split copy that is trained instead of the model that samples.
        """
        # A split copy runs torch's forward: what it is compared with has to do so too.
        self._whole = step if shards is None else step.without_exact()
        self._shards = shards
        self._step = step if shards is None else shards.step
        self._optimizer = adamw
        self._config = config
        self._reference = reference
        self._group = group or Group()

    def apply(self, forest: Forest, credited: Credit, learning_rate: float) -> Metrics:
        """Trains on a forest.

        Args:
            forest: trees with a signal.
            credited: their credit.
            learning_rate: of all optimizer steps.

        Returns:
            Means over the optimizer steps.

        Raises:
            NotFiniteError: if a number is NaN or infinite; the steps before it are made.
        """
        count = num_minibatches(forest.num_trees, self._config)
        groups = [
            self._prepare(forest.select(trees), credited.of_trees(forest, trees))
            for trees in np.array_split(np.arange(forest.num_trees), count)
        ]
        parts: list[StepMetrics] = []
        norms: list[float] = []
        for _ in range(self._config.epochs_per_step):
            for group in groups:
                # An update that was refused leaves a part of its gradient.
                self._optimizer.zero_grad()
                parts.append(self._accumulate(group))
                grad_clip = self._config.optimizer.grad_clip
                norms.append(optimizer.apply(self._optimizer, learning_rate, grad_clip))
        return update_metrics(parts, norms)

    def _prepare(self, forest: Forest, credited: Credit) -> list[Microbatch]:
        """Pack this process's trees of a minibatch, and fix what no optimizer step may change."""
        mine = self._group.share(tree_sizes(forest))
        if not len(mine):
            return []
        credited, forest = credited.of_trees(forest, mine), forest.select(mine)
        config, longest = self._config, self._config.search.completion_len
        found = []
        may_be_cut = config.cutting_update.max_tokens_per_part is not None
        runs = microbatches(forest, config.max_tokens_per_microbatch, may_be_cut=may_be_cut)
        for trees in runs:
            part = forest.select(trees)
            packed = pack(part)
            own = credited.of_trees(forest, trees)
            advantages = TokenAdvantages.of_credit(packed, part, own)
            averaged = advantages.averaged(packed, config.loss.average, longest)
            found.append(Microbatch(packed=packed, advantages=averaged, fixed=self._fixed(packed)))
        return found

    def _fixed(self, packed: PackedForest) -> Fixed:
        old = None
        if self._config.loss.correction.by is not Correct.NOTHING:
            old = self._whole.fixed_logprobs(packed)
        reference = None if self._reference is None else self._reference.logprobs(packed)
        return Fixed(old=old, reference=reference)

    def _accumulate(self, group: Sequence[Microbatch]) -> StepMetrics:
        """Forward and backward of one minibatch, micro-batch by micro-batch."""
        own = sum(part.advantages.total_weight for part in group), len(group)
        weights, counts = zip(*self._group.gather(own), strict=True)
        done = [
            self._step.backward(part.packed, part.advantages, sum(weights), part.fixed)
            for part in group
        ]
        if self._shards is None:
            parameters = [p for g in self._optimizer.param_groups for p in g["params"]]
            self._group.add_gradients(parameters)
        else:
            # Each pass of a split model is one of all processes, and adds the gradients up.
            for _ in range(max(counts) - len(group)):
                self._step.idle()
        return combine([part for parts in self._group.gather(done) for part in parts])


def num_minibatches(num_trees: int, config: TrainConfig) -> int:
    """Returns the minibatches for so many trees: few trees make few steps, not small ones."""
    full = math.ceil(config.prompts_per_step / config.minibatches_per_step)
    return math.ceil(num_trees / full)
