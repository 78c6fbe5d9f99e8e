"""Forward and backward of one micro-batch of trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from treepo.config import LossConfig, UpdateConfig
from treepo.engine.exact import ExactForward
from treepo.engine.hook import AttentionContext
from treepo.errors import InvalidConfigError, InvalidInputError, NotFiniteError
from treepo.train.contexts import packed_context
from treepo.train.exact_attention import ExactContext
from treepo.train.forward import Forward
from treepo.train.objective import Fixed, ForestLoss, Objective, require_finite
from treepo.train.pack import PackedForest
from treepo.train.partitioned import PartitionedPass
from treepo.train.step_metrics import StepMetrics
from treepo.train.token_advantages import TokenAdvantages

F32 = npt.NDArray[np.float32]
ContextFactory = Callable[[PackedForest, torch.device], AttentionContext]


class TrainStep:
    """Runs packed trees through a model and accumulates the gradient of the policy loss."""

    def __init__(
        self,
        model: PreTrainedModel,
        loss_config: LossConfig,
        temperature: float,
        *,
        update: UpdateConfig | None = None,
        context: ContextFactory | None = None,
        exact: ExactForward | None = None,
        enter: Callable[..., Any] | None = None,
    ) -> None:
        """Installs the attention hook on the model and finds out what its head computes.

        Args:
            model: a causal LM; its parameters receive the gradients.
            loss_config: the loss.
            temperature: temperature that the trajectories were sampled at, above 0.
            update: number format, what is kept for the backward pass, and parts.
            context: attention context of a packed forest on a device, if not that of `update`;
                parts have their own.
            exact: makes the model compute the bits it sampled with
                (`treepo.engine.Engine.exact_forward`), and `context` only the gradient's attention.
            enter: puts the weights of a split model in place (`Forward`).

        Raises:
            InvalidConfigError: if the temperature is 0 or below.
            UnsupportedModelError: if the model cannot run on trees.
        """
        if temperature <= 0:
            raise InvalidConfigError(
                f"sampling.temperature = {temperature} cannot be trained at: a greedy choice has "
                f"no log-prob, set it above 0"
            )
        self._loss_config = loss_config
        self._temperature = temperature
        self._config = update or UpdateConfig()
        self._forward = Forward(model, temperature, self._config, exact, enter)
        self._objective = Objective(loss_config)
        self._context = context

    def without_exact(self) -> TrainStep:
        """Returns the same step, computed by torch alone."""
        return TrainStep(
            self._forward.model, self._loss_config, self._temperature, update=self._config
        )

    def on(self, model: PreTrainedModel, enter: Callable[..., Any]) -> TrainStep:
        """Returns the same step of a copy of the model.

        Args:
            model: the copy.
            enter: puts its weights in place once it is split.
        """
        return TrainStep(
            model, self._loss_config, self._temperature, update=self._config, enter=enter
        )

    def backward(
        self,
        packed: PackedForest,
        advantages: npt.ArrayLike | TokenAdvantages,
        total_weight: float,
        fixed: Fixed | None = None,
    ) -> StepMetrics:
        """Forward and backward of one micro-batch; gradients add to those already there.

        Args:
            packed: the trees of the micro-batch.
            advantages: those of trajectory tokens; or one a path of the forest that was packed,
                float[P], which all of the path's tokens have with weight 1.
            total_weight: sum of `TokenAdvantages.total_weight` over the whole optimizer step.
            fixed: log-probs from before the optimizer step; absent: only those of the sampler.

        Returns:
            The metrics of this micro-batch.

        `loss_config.average` is the caller's: `TokenAdvantages.averaged` gives its weights.

        Raises:
            InvalidInputError: if no token was sampled, or an advantage or what the loss needs of
                `fixed` is missing.
            NotFiniteError: if advantages, log-probs or loss hold NaN or infinity; no gradient has
                been added then, unless parts keep their activations.
        """
        _check_has_tokens(packed)
        if not isinstance(advantages, TokenAdvantages):
            advantages = TokenAdvantages.of_paths(packed, advantages)
        _check_input(packed, advantages, total_weight)
        fixed = fixed or Fixed()
        self._objective.require(fixed)
        partitioned = self._partitioned(packed)
        with self._forward.applied():
            if partitioned is None:
                loss = self._backward(packed, advantages, total_weight, fixed)
            else:
                loss = partitioned.backward(packed, advantages, total_weight, fixed)
        return loss.describe(packed)

    def _backward(
        self,
        packed: PackedForest,
        advantages: TokenAdvantages,
        total_weight: float,
        fixed: Fixed,
    ) -> ForestLoss:
        logprob, entropy = self._forward.enter(self._logprobs, packed)
        require_finite("the model's log-probs", logprob)
        loss = self._objective(packed, advantages, total_weight, logprob, entropy, fixed)
        loss.require_finite()
        loss.loss.backward()  # type: ignore[no-untyped-call]
        return loss.forwarded(packed.num_tokens)

    def idle(self) -> None:
        """Takes part in a split model's forward and backward without a tree."""
        with self._forward.applied():
            self._forward.idle()

    def logprobs(self, packed: PackedForest) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the unique sampled tokens under the current weights.

        Args:
            packed: the trees.

        Returns:
            Log-probs and entropies in nats with gradients, [U] each, at the sampling temperature.

        Raises:
            UnsupportedModelError: if the model is in training mode and drops activations.
        """
        with self._forward.applied():
            return self._logprobs(packed)

    def fixed_logprobs(self, packed: PackedForest) -> F32:
        """Log-probs of the unique sampled tokens, without a gradient, in parts if it is large.

        Args:
            packed: the trees.

        Returns:
            f32[U].
        """
        partitioned = self._partitioned(packed)
        with self._forward.applied(), torch.no_grad():
            read = self._logprobs if partitioned is None else partitioned.logprobs
            found: F32 = read(packed)[0].float().cpu().numpy()
        return found

    def plain_logprobs(self, token_ids: npt.ArrayLike) -> Tensor:
        """Log-probs of a single sequence's tokens; see `Forward.plain_logprobs`."""
        return self._forward.plain_logprobs(token_ids)

    def _partitioned(self, packed: PackedForest) -> PartitionedPass | None:
        limit = self._config.max_tokens_per_part
        if limit is None or packed.num_tokens <= limit:
            return None
        return PartitionedPass(self._forward, self._objective, limit, self._config.parts)

    def _logprobs(self, packed: PackedForest) -> tuple[Tensor, Tensor]:
        hidden = self._forward.hidden(packed.token_ids, packed.positions, self._attention(packed))
        return self._forward.read(hidden, packed.predictor, packed.token_ids[packed.target])

    def _attention(self, packed: PackedForest) -> AttentionContext:
        device = self._forward.model.device
        if self._context is None:
            gradient = packed_context(packed, device, self._config.attention)
        else:
            gradient = self._context(packed, device)
        exact = self._forward.exact
        return gradient if exact is None else ExactContext(packed, exact.kernels, gradient)


def _check_has_tokens(packed: PackedForest) -> None:
    if packed.num_trajectory_tokens == 0:
        raise InvalidInputError("the packed trees hold no sampled token: there is no loss")


def _check_input(packed: PackedForest, advantages: TokenAdvantages, total_weight: float) -> None:
    if len(advantages.values) != packed.num_trajectory_tokens:
        raise InvalidInputError(
            f"{len(advantages.values)} advantages for {packed.num_trajectory_tokens} trajectory "
            f"tokens: pass one for each entry of src"
        )
    weight = advantages.total_weight
    if total_weight < weight * (1 - 1e-9):
        raise InvalidInputError(
            f"total_weight = {total_weight:g} is below this micro-batch's own, {weight:g}: pass "
            f"the sum over the whole optimizer step"
        )
    for name, values in (
        ("an advantage", advantages.values),
        ("a log-prob recorded at sampling", packed.old_logprob),
    ):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise NotFiniteError(
                f"{name} is {values[bad[0]]} ({len(bad)} of {len(values)} tokens): the update is "
                f"refused, check rewards and sampling"
            )
