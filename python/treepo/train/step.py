"""Forward and backward of one micro-batch of trees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from treepo.config import LossConfig
from treepo.engine.exact import ExactForward
from treepo.engine.hook import AttentionContext, evaluating, install, plain_attention, probe
from treepo.errors import (
    InvalidConfigError,
    InvalidInputError,
    NotFiniteError,
    UnsupportedModelError,
)
from treepo.train.attention import packed_context
from treepo.train.exact_attention import ExactContext
from treepo.train.head import output_head, token_logprobs
from treepo.train.objective import Fixed, Objective
from treepo.train.pack import PackedForest
from treepo.train.step_metrics import StepMetrics
from treepo.train.token_advantages import TokenAdvantages

F32 = npt.NDArray[np.float32]
_OTHER_HEADS = ("classifier_", "summary_")
ContextFactory = Callable[[PackedForest, torch.device], AttentionContext]


class TrainStep:
    """Runs packed trees through a model and accumulates the gradient of the clipped loss."""

    def __init__(
        self,
        model: PreTrainedModel,
        loss_config: LossConfig,
        temperature: float,
        *,
        context: ContextFactory = packed_context,
        exact: ExactForward | None = None,
    ) -> None:
        """Installs the attention hook on the model and finds out what its head computes.

        Args:
            model: a causal LM; its parameters receive the gradients.
            loss_config: clip edges of the loss.
            temperature: temperature that the trajectories were sampled at, above 0.
            context: attention context of a packed forest on a device.
            exact: makes the model compute the bits it sampled with
                (`treepo.engine.Engine.exact_forward`), and `context` only the gradient's attention.

        Raises:
            InvalidConfigError: if the temperature is 0 or below.
            UnsupportedModelError: if the model cannot run on trees.
        """
        if temperature <= 0:
            raise InvalidConfigError(
                f"sampling.temperature = {temperature} cannot be trained at: a greedy choice has "
                f"no log-prob, set it above 0"
            )
        _check_dropout(model)
        probe(model)
        self._model = model
        self._objective = Objective(loss_config)
        self._temperature = temperature
        self._context = context
        self._exact = exact
        self._head = output_head(model)

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

        Raises:
            InvalidInputError: if no token was sampled or an advantage is missing.
            NotFiniteError: if advantages, log-probs or loss hold NaN or infinity; no gradient has
                been added then.
        """
        _check_has_tokens(packed)
        if not isinstance(advantages, TokenAdvantages):
            advantages = TokenAdvantages.of_paths(packed, advantages)
        _check_input(packed, advantages, total_weight)
        with self._numerics():
            logprob, entropy = self._logprobs(packed)
            _check_finite("the model's log-probs", logprob)
            terms = self._objective(
                packed, advantages, total_weight, logprob, entropy, fixed or Fixed()
            )
            _check_finite("the loss", terms.loss)
            terms.loss.backward()  # type: ignore[no-untyped-call]
        return terms.describe(packed)

    def logprobs(self, packed: PackedForest) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the unique sampled tokens under the current weights.

        Args:
            packed: the trees.

        Returns:
            Log-probs with a gradient and entropies in nats without, [U] each, at the sampling
            temperature.

        Raises:
            UnsupportedModelError: if the model is in training mode and drops activations.
        """
        with self._numerics():
            return self._logprobs(packed)

    def fixed_logprobs(self, packed: PackedForest) -> F32:
        """Log-probs of the unique sampled tokens, without a gradient, f32[U]."""
        with torch.no_grad():
            found: F32 = self.logprobs(packed)[0].float().cpu().numpy()
        return found

    def _numerics(self) -> AbstractContextManager[None]:
        return nullcontext() if self._exact is None else self._exact.applied()

    def _logprobs(self, packed: PackedForest) -> tuple[Tensor, Tensor]:
        _check_dropout(self._model)
        install(self._model)  # With any other attention every token would see the whole row.
        hidden = self._model.base_model(
            input_ids=self._tensor(packed.token_ids)[None],
            position_ids=self._tensor(packed.positions)[None],
            use_cache=False,
            treepo=self._attention(packed),
        ).last_hidden_state[0]
        rows = F.embedding(self._tensor(packed.predictor), hidden)
        targets = self._tensor(packed.token_ids[packed.target])
        return token_logprobs(rows, self._head, targets, self._temperature, exact=self._exact)

    def _attention(self, packed: PackedForest) -> AttentionContext:
        gradient = self._context(packed, self._model.device)
        return (
            gradient if self._exact is None else ExactContext(packed, self._exact.kernels, gradient)
        )

    def plain_logprobs(self, token_ids: npt.ArrayLike) -> Tensor:
        """Log-probs of a single sequence's tokens by the model's own attention, without a tree.

        Args:
            token_ids: the sequence, int[n], n at least 2.

        Returns:
            Log-prob of every token after the first, [n - 1], without a gradient.
        """
        ids = self._tensor(np.asarray(token_ids, dtype=np.int64))
        with torch.no_grad(), plain_attention(self._model), evaluating(self._model):
            hidden = self._model.base_model(input_ids=ids[None], use_cache=False)
            rows = hidden.last_hidden_state[0, :-1]
            return token_logprobs(rows, self._head, ids[1:], self._temperature)[0]

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._model.device)


def _check_dropout(model: PreTrainedModel) -> None:
    """Refuse dropout: log-probs would not be those that the tokens were sampled with."""
    if not model.training:
        return
    rates = {
        f"module {name}": float(module.p)
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and module.training
    }
    for name, value in model.config.get_text_config(decoder=True).to_dict().items():
        if "drop" in name and isinstance(value, float) and not name.startswith(_OTHER_HEADS):
            rates[f"config.{name}"] = value
    for name, rate in rates.items():
        if rate > 0:
            raise UnsupportedModelError(
                f"{type(model).__name__} is in training mode and drops activations, {name} = "
                f"{rate:g}: set it to 0, or call model.eval()"
            )


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


def _check_finite(name: str, values: Tensor) -> None:
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = values[~finite].flatten()
        raise NotFiniteError(
            f"{name}: {bad[0].item()} in {len(bad)} of {values.numel()} values; the update is "
            f"refused, lower the learning rate or go back to an earlier checkpoint"
        )
