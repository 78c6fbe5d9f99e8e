"""The loss of a packed forest from the log-probs of its unique tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treepo.config import LossConfig
from treepo.train.importance import correction
from treepo.train.losses import LossTerms, policy_loss
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
    """

    loss: Tensor
    terms: LossTerms
    entropy: Tensor
    mismatch: Tensor

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
            **found, num_unique_tokens=packed.num_tokens, num_trajectory_tokens=count
        )


class Objective:
    """The configured loss as a function of log-probs."""

    def __init__(self, config: LossConfig) -> None:
        """Takes the config of the loss."""
        self.config = config

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

        def on_device(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(logprob.device)

        def of_tokens(array: npt.NDArray[Any]) -> Tensor:
            return on_device(array).to(logprob.dtype)

        src = on_device(packed.src)
        trajectory = on_device(numbered(packed.src_path))
        sampler = of_tokens(packed.old_logprob)[src]
        old = sampler if fixed.old is None else of_tokens(fixed.old)[src]
        current, spread = logprob.index_select(0, src), entropy.index_select(0, src)
        terms = policy_loss(
            current,
            old,
            of_tokens(advantages.values),
            self.config,
            total_weight,
            weight=of_tokens(advantages.weights),
            trajectory=trajectory,
            correction=correction(old, sampler, trajectory, self.config.correction),
            reference=None if fixed.reference is None else of_tokens(fixed.reference)[src],
            entropy=spread if self.config.entropy_weight else None,
        )
        known = current.detach() if fixed.old is None else old
        return ForestLoss(
            loss=terms.loss,
            terms=terms,
            entropy=spread.detach().mean(),
            mismatch=(known - sampler).abs().sum(),
        )
