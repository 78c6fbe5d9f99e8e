"""The loss of a packed forest from the log-probs of its unique tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treepo.config import Correct, LossConfig, Ratio
from treepo.config import Objective as Surrogate
from treepo.errors import InvalidConfigError, InvalidInputError, NotFiniteError
from treepo.train.importance import correction
from treepo.train.losses import LossTerms, divergence, policy_loss
from treepo.train.pack import PackedForest
from treepo.train.step_metrics import StepMetrics
from treepo.train.token_advantages import TokenAdvantages, numbered

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Log-probs of the unique sampled tokens that no optimizer step changes.

    Attributes:
        old: by the trainer at the weights that sampled, f32[U]; absent: the sampler's count.
        reference: by the reference model, f32[U]; absent without one.
    """

    old: F32 | None = None
    reference: F32 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestLoss:
    """The loss of one micro-batch and what describes it.

    Attributes:
        loss: the loss, a scalar with a gradient.
        terms: clip counts, ratios and divergences.
        entropy: mean entropy of trajectory tokens, a scalar.
        mismatch: sum over trajectory tokens of how far sampler and trainer disagree, in nats; the
            change of the policy is in it where the trainer's old log-probs are not known.
        weight_min: smallest ratio of the trainer's probability to the sampler's, as `mismatch`.
        weight_max: the largest.
        num_forward_tokens: tokens that ran forward for it.
    """

    loss: Tensor
    terms: LossTerms
    entropy: Tensor
    mismatch: Tensor
    weight_min: Tensor
    weight_max: Tensor
    num_forward_tokens: int = 0

    def forwarded(self, num_tokens: int) -> Self:
        """Returns it with the tokens that ran forward for it, each time that they did."""
        return replace(self, num_forward_tokens=num_tokens)

    def require_finite(self) -> None:
        """Refuses a loss that is NaN or infinite.

        Raises:
            NotFiniteError: if it is.
        """
        require_finite("the loss", self.loss)

    def describe(self, packed: PackedForest) -> StepMetrics:
        """Returns the metrics, in one transfer from the device."""
        terms = self.terms
        scalars = {
            "clip_ratio_low": terms.clipped_low,
            "clip_ratio_high": terms.clipped_high,
            "abs_log_ratio": self.mismatch,
            "kl": terms.kl,
            "ratio_min": terms.ratio_min,
            "ratio_max": terms.ratio_max,
            "weight_min": self.weight_min,
            "weight_max": self.weight_max,
            "loss": self.loss.detach(),
            "entropy": self.entropy,
        }
        dtype = self.loss.dtype
        values = torch.stack([x.to(dtype) for x in scalars.values()]).cpu().tolist()
        found: dict[str, Any] = dict(zip(scalars, values, strict=True))
        count = packed.num_trajectory_tokens
        for name in ("clip_ratio_low", "clip_ratio_high", "abs_log_ratio", "kl"):
            found[name] /= count
        return StepMetrics(
            **found,
            num_unique_tokens=packed.num_tokens,
            num_forward_tokens=self.num_forward_tokens,
            num_trajectory_tokens=count,
        )


class Objective:
    """The configured loss as a function of log-probs."""

    def __init__(self, config: LossConfig) -> None:
        """Takes the config of the loss."""
        self.config = config

    def require(self, fixed: Fixed) -> None:
        """Checks that there is what the loss compares with.

        Raises:
            InvalidInputError: if there is not.
        """
        config = self.config
        if config.kl_weight and fixed.reference is None:
            raise InvalidInputError(
                f"loss.kl_weight = {config.kl_weight} needs log-probs of the reference: give "
                "Fixed(reference=..), see treepo.train.reference.Reference"
            )
        if config.correction.by is not Correct.NOTHING and fixed.old is None:
            raise InvalidInputError(
                f"loss.correction.by = {config.correction.by.value} needs the trainer's log-probs "
                "at the weights that sampled: give Fixed(old=TrainStep.fixed_logprobs(packed))"
            )

    def __call__(
        self,
        packed: PackedForest,
        advantages: TokenAdvantages,
        total_weight: float,
        logprob: Tensor,
        entropy: Tensor,
        fixed: Fixed,
    ) -> ForestLoss:
        """Returns the loss, expanded to trajectory tokens.

        Args:
            packed: the trees.
            advantages: those of trajectory tokens.
            total_weight: sum of weights over the whole optimizer step.
            logprob: of the unique sampled tokens, [U], with a gradient.
            entropy: of the same, [U], with a gradient.
            fixed: log-probs that do not change.
        """
        own = _Tensors(packed, advantages, fixed, logprob.device, logprob.dtype)
        src, sampler, old = own.src, own.sampler[own.src], own.old[own.src]
        current, spread = logprob.index_select(0, src), entropy.index_select(0, src)
        terms = policy_loss(
            current,
            old,
            own.advantage,
            self.config,
            total_weight,
            weight=own.weight,
            trajectory=own.trajectory,
            correction=own.correction(self.config),
            reference=None if own.reference is None else own.reference[src],
            entropy=spread if self.config.entropy_weight else None,
        )
        known = current.detach() if fixed.old is None else old
        difference = known - sampler
        return ForestLoss(
            loss=terms.loss,
            terms=terms,
            entropy=spread.detach().mean(),
            mismatch=difference.abs().sum(),
            weight_min=difference.min().exp(),
            weight_max=difference.max().exp(),
        )

    def split(
        self,
        packed: PackedForest,
        advantages: TokenAdvantages,
        total_weight: float,
        fixed: Fixed,
        device: torch.device,
    ) -> SplitLoss:
        """Returns the loss as a sum over unique tokens, which may be asked for in any pieces.

        Args:
            packed: the trees.
            advantages: those of trajectory tokens.
            total_weight: sum of weights over the whole optimizer step.
            fixed: log-probs that do not change.
            device: where the log-probs will be.

        Raises:
            InvalidConfigError: if the loss compares whole trajectories.
        """
        if self.config.ratio is Ratio.TRAJECTORY:
            raise InvalidConfigError(
                "loss.ratio = trajectory is no sum over tokens: set update.parts = recompute"
            )
        own = _Tensors(packed, advantages, fixed, device, torch.float64)
        weight = own.weight
        factor = own.correction(self.config)
        advantage = weight * own.advantage * (1.0 if factor is None else factor)
        count = packed.num_sampled_tokens

        def sums(values: Tensor) -> Tensor:
            return values.new_zeros(count).index_add(0, own.src, values)

        return SplitLoss(
            config=self.config,
            total_weight=total_weight,
            positive=sums(advantage.clamp(min=0)),
            negative=sums(advantage.clamp(max=0)),
            weight=sums(weight),
            old=own.old,
            reference=own.reference,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitLoss:
    """A loss of tokens without its trajectories: two sums of advantages a token are enough.

    With A+ the sum of a token's positive advantages over its trajectories and A- that of the
    negative ones, the sum of min(r A, clip(r) A) is A+ min(r, 1 + clip_high) + A- max(r, 1 -
    clip_low). Their plain sum is not enough: opposite signs would cancel before the clip.

    Attributes:
        config: the loss.
        total_weight: sum of weights over the whole optimizer step.
        positive: A+, weighted and corrected, f64[U].
        negative: A-, f64[U].
        weight: sum of the weights, for divergence and entropy, f64[U].
        old: old log-probs, f64[U].
        reference: the reference's, f64[U]; absent without one.
    """

    config: LossConfig
    total_weight: float
    positive: Tensor
    negative: Tensor
    weight: Tensor
    old: Tensor
    reference: Tensor | None

    def loss(self, logprob: Tensor, entropy: Tensor, rows: Tensor) -> Tensor:
        """Returns the share of some tokens, a scalar with a gradient.

        Args:
            logprob: their log-probs, [R].
            entropy: their entropies, [R].
            rows: which of the U tokens they are, i64[R].
        """
        positive, negative, weight, old = (
            x[rows].to(logprob.dtype) for x in (self.positive, self.negative, self.weight, self.old)
        )
        ratio = (logprob - old).exp()
        low, high = 1 - self.config.clip_low, 1 + self.config.clip_high
        if self.config.objective is Surrogate.CISPO:
            total = ratio.detach().clamp(low, high) * (positive + negative) * logprob
        else:
            below = ratio.clamp(min=low)
            if self.config.dual_clip is not None:
                below = below.clamp(max=self.config.dual_clip)
            total = positive * ratio.clamp(max=high) + negative * below
        if self.reference is not None and self.config.kl_weight:
            difference = logprob - self.reference[rows].to(logprob.dtype)
            spread = divergence(difference, self.config.kl)
            total = total - self.config.kl_weight * weight * spread
        if self.config.entropy_weight:
            total = total + self.config.entropy_weight * weight * entropy
        return -total.sum() / self.total_weight


class _Tensors:
    """What the loss reads, on a device: [U] of unique tokens, [S] of trajectory tokens."""

    def __init__(
        self,
        packed: PackedForest,
        advantages: TokenAdvantages,
        fixed: Fixed,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        def moved(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device=device, dtype=dtype)

        self.src = torch.from_numpy(packed.src).to(device)
        self.trajectory = torch.from_numpy(numbered(packed.src_path)).to(device)
        self.sampler = moved(packed.old_logprob)
        self.old = self.sampler if fixed.old is None else moved(fixed.old)
        self.reference = None if fixed.reference is None else moved(fixed.reference)
        self.advantage = moved(advantages.values)
        self.weight = moved(advantages.weights)

    def correction(self, config: LossConfig) -> Tensor | None:
        """Return the weights of the importance correction, [S]."""
        old, sampler = self.old[self.src], self.sampler[self.src]
        return correction(old, sampler, self.trajectory, config.correction)


def require_finite(name: str, values: Tensor) -> None:
    """Refuses NaN and infinity.

    Args:
        name: what the numbers are, for the message.
        values: the numbers.

    Raises:
        NotFiniteError: if there are any.
    """
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = values[~finite].flatten()
        raise NotFiniteError(
            f"{name}: {bad[0].item()} in {len(bad)} of {values.numel()} values; the update is "
            f"refused, lower the learning rate or go back to an earlier checkpoint"
        )
