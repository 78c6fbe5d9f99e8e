"""Forward and backward of one micro-batch of trees, and the check that the tree is exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from treepo.advantages import Credit
from treepo.config import Average, LossConfig
from treepo.engine.exact import ExactForward
from treepo.engine.hook import AttentionContext, evaluating, install, plain_attention, probe
from treepo.errors import (
    InvalidConfigError,
    InvalidInputError,
    NotFiniteError,
    UnsupportedModelError,
)
from treepo.forest import Forest, TokenKind
from treepo.train.attention import packed_context
from treepo.train.exact_attention import ExactContext
from treepo.train.head import output_head, token_logprobs
from treepo.train.losses import LossTerms, policy_loss
from treepo.train.pack import PackedForest, pack

F64 = npt.NDArray[np.float64]
_OTHER_HEADS = ("classifier_", "summary_")
ContextFactory = Callable[[PackedForest, torch.device], AttentionContext]


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
        trajectory = _numbered(packed.src_path)
        totals = np.bincount(trajectory, self.weights)
        if average is Average.MAX_TOKENS:
            return replace(self, total_weight=float(len(totals) * max_tokens))
        weights = self.weights / totals[trajectory]
        return replace(self, weights=weights, total_weight=float(len(totals)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What one micro-batch did; `combine` joins those of one optimizer step.

    Means are over trajectory tokens: a token counts once for each trajectory that holds it.

    Attributes:
        loss: this micro-batch's share of the loss; shares add up.
        clip_ratio_low: fraction of trajectory tokens clipped below.
        clip_ratio_high: fraction of trajectory tokens clipped above.
        entropy: mean entropy at the sampling temperature, in nats.
        abs_log_ratio: mean of abs(logprob - old_logprob), in nats.
        ratio_min: smallest probability ratio.
        ratio_max: largest probability ratio.
        num_unique_tokens: tokens that ran through the model, prompts included.
        num_trajectory_tokens: sampled tokens, counted per trajectory.
    """

    loss: float
    clip_ratio_low: float
    clip_ratio_high: float
    entropy: float
    abs_log_ratio: float
    ratio_min: float
    ratio_max: float
    num_unique_tokens: int
    num_trajectory_tokens: int


def combine(parts: Sequence[StepMetrics]) -> StepMetrics:
    """Joins the metrics of micro-batches: losses and counts add up, means weigh by tokens.

    Args:
        parts: metrics of the micro-batches, at least one.

    Returns:
        The metrics of all of them together.
    """
    total = sum(part.num_trajectory_tokens for part in parts)
    weights = [part.num_trajectory_tokens / total for part in parts]

    def mean(name: str) -> float:
        values = [float(getattr(part, name)) for part in parts]
        return sum(weight * value for weight, value in zip(weights, values, strict=True))

    return StepMetrics(
        loss=sum(part.loss for part in parts),
        clip_ratio_low=mean("clip_ratio_low"),
        clip_ratio_high=mean("clip_ratio_high"),
        entropy=mean("entropy"),
        abs_log_ratio=mean("abs_log_ratio"),
        ratio_min=min(part.ratio_min for part in parts),
        ratio_max=max(part.ratio_max for part in parts),
        num_unique_tokens=sum(part.num_unique_tokens for part in parts),
        num_trajectory_tokens=total,
    )


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
        self._loss_config = loss_config
        self._temperature = temperature
        self._context = context
        self._exact = exact
        self._head = output_head(model)

    def backward(
        self,
        packed: PackedForest,
        advantages: npt.ArrayLike | TokenAdvantages,
        total_weight: float,
    ) -> StepMetrics:
        """Forward and backward of one micro-batch; gradients add to those already there.

        Args:
            packed: the trees of the micro-batch.
            advantages: those of trajectory tokens; or one a path of the forest that was packed,
                float[P], which all of the path's tokens have with weight 1.
            total_weight: sum of `TokenAdvantages.total_weight` over the whole optimizer step.

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
            return self._backward(packed, advantages, total_weight)

    def _backward(
        self, packed: PackedForest, advantages: TokenAdvantages, total_weight: float
    ) -> StepMetrics:
        logprob, entropy = self._logprobs(packed)
        _check_finite("the model's log-probs", logprob)
        src = self._tensor(packed.src)
        old = self._tensor(packed.old_logprob).to(logprob.dtype)
        terms = policy_loss(
            logprob.index_select(0, src),
            old[src],
            self._tensor(advantages.values).to(logprob.dtype),
            self._loss_config,
            total_weight,
            weight=self._tensor(advantages.weights).to(logprob.dtype),
            trajectory=self._tensor(_numbered(packed.src_path)),
        )
        _check_finite("the loss", terms.loss)
        terms.loss.backward()  # type: ignore[no-untyped-call]
        return _metrics(packed, terms, entropy[src].mean())

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


def first_step_check(
    model: PreTrainedModel,
    forest: Forest,
    temperature: float,
    *,
    tolerance: float | None = None,
) -> float:
    """Compares the log-probs of two leaves on the tree with a plain forward of their tokens.

    The leaves come from the tree with the most paths: its first path and, of the paths that are
    not packed right behind the token they fork from, the one that forks deepest. A model whose
    attention sees more or less than its ancestors fails here.

    Args:
        model: the causal LM.
        forest: a forest with sampled tokens.
        temperature: temperature of the log-probs, above 0.
        tolerance: largest allowed difference in nats; absent: 1e-3 in float32 and float64, 0.25
            in shorter formats.

    Returns:
        The largest difference found, in nats.

    Raises:
        InvalidInputError: if the forest has no sampled token.
        UnsupportedModelError: if the difference is above the tolerance.
    """
    if tolerance is None:
        tolerance = 0.25 if model.dtype in (torch.float16, torch.bfloat16) else 1e-3
    step = TrainStep(model, LossConfig(), temperature)
    tree_paths, leaves = _paths_to_compare(forest)
    packed = pack(forest, tree_paths)
    with torch.no_grad(), evaluating(model):
        on_tree = step.logprobs(packed)[0].cpu()
    worst = 0.0
    for leaf in leaves:
        tree = on_tree[torch.from_numpy(packed.src[packed.src_path == leaf])]
        predictor = pack(forest, [leaf]).predictor
        plain = step.plain_logprobs(forest.token_ids(leaf)).cpu()[torch.from_numpy(predictor)]
        worst = max(worst, float((tree - plain).abs().max()))
    if not worst <= tolerance:
        raise UnsupportedModelError(
            f"{type(model).__name__} gives log-probs on the tree that differ by {worst:.3g} from "
            f"a plain forward, above {tolerance:g}: it cannot be trained on trees"
        )
    return worst


def _paths_to_compare(forest: Forest) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Paths of the tree with the most of them, and the two leaves to compare."""
    bounds = np.asarray(forest.trees.path_start)
    tree = int(np.diff(bounds).argmax())
    paths = np.arange(bounds[tree], bounds[tree + 1], dtype=np.int64)
    tokens = np.diff(np.asarray(forest.paths.token_start))[paths]
    prompt_len = int(np.asarray(forest.trees.prompt_len)[tree])
    own = np.where(np.arange(len(paths)) == 0, tokens - prompt_len, tokens)
    grown = paths[own > 0]
    if len(grown) == 0:
        raise InvalidInputError("no tree has a sampled token to check: sample completions first")
    apart = np.intersect1d(grown, _paths_apart(forest))
    forks = apart if len(apart) else grown
    deepest = forks[np.asarray(forest.paths.at)[forks].argmax()]
    return paths, sorted({int(grown[0]), int(deepest)})


def _paths_apart(forest: Forest) -> npt.NDArray[np.int32]:
    """Paths that begin with a sampled token which is not packed behind the one that predicts it."""
    nodes = forest.nodes()
    is_first = (nodes.parent >= 0) & (nodes.start == forest.paths.at[nodes.path])
    is_apart = nodes.parent != np.arange(len(nodes.parent)) - 1
    is_sampled = forest.tokens.kind[nodes.token_start] == TokenKind.SAMPLED
    apart: npt.NDArray[np.int32] = nodes.path[is_first & is_apart & is_sampled]
    return apart


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


def _numbered(paths: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Numbers the paths that occur from 0 on."""
    numbers: npt.NDArray[np.int64] = np.unique(paths, return_inverse=True)[1].astype(np.int64)
    return numbers


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


def _metrics(packed: PackedForest, terms: LossTerms, entropy: Tensor) -> StepMetrics:
    low, high, abs_log_ratio, ratio_min, ratio_max, loss, mean_entropy = (
        torch.stack(
            [
                terms.clipped_low.to(terms.loss.dtype),
                terms.clipped_high.to(terms.loss.dtype),
                terms.abs_log_ratio,
                terms.ratio_min,
                terms.ratio_max,
                terms.loss.detach(),
                entropy,
            ]
        )
        .cpu()
        .tolist()
    )
    count = packed.num_trajectory_tokens
    return StepMetrics(
        loss=loss,
        clip_ratio_low=low / count,
        clip_ratio_high=high / count,
        entropy=mean_entropy,
        abs_log_ratio=abs_log_ratio / count,
        ratio_min=ratio_min,
        ratio_max=ratio_max,
        num_unique_tokens=packed.num_tokens,
        num_trajectory_tokens=count,
    )
