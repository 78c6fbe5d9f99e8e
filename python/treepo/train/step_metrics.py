"""What one micro-batch did to the weights, and the sum of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What one micro-batch did; `combine` joins those of one optimizer step.

    Means are over trajectory tokens: a token counts once for each trajectory that holds it.

    Attributes:
        loss: this micro-batch's share of the loss; shares add up.
        clip_ratio_low: fraction of trajectory tokens clipped below.
        clip_ratio_high: fraction of trajectory tokens clipped above.
        entropy: mean entropy at the sampling temperature, in nats.
        abs_log_ratio: mean of abs(logprob - sampler's logprob), in nats; of the trainer's
            log-prob before the update where that is known.
        kl: mean divergence from the reference, in nats; 0 without one.
        ratio_min: smallest probability ratio that the loss clips.
        ratio_max: the largest.
        weight_min: smallest ratio of the trainer's probability to the sampler's, at the weights
            that `abs_log_ratio` compares.
        weight_max: the largest.
        num_unique_tokens: tokens that ran through the model, prompts included.
        num_forward_tokens: tokens that ran forward, each time that they did but for activations.
        num_trajectory_tokens: sampled tokens, counted per trajectory.
    """

    loss: float
    clip_ratio_low: float
    clip_ratio_high: float
    entropy: float
    abs_log_ratio: float
    kl: float
    ratio_min: float
    ratio_max: float
    weight_min: float
    weight_max: float
    num_unique_tokens: int
    num_forward_tokens: int
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
        kl=mean("kl"),
        ratio_min=min(part.ratio_min for part in parts),
        ratio_max=max(part.ratio_max for part in parts),
        weight_min=min(part.weight_min for part in parts),
        weight_max=max(part.weight_max for part in parts),
        num_unique_tokens=sum(part.num_unique_tokens for part in parts),
        num_forward_tokens=sum(part.num_forward_tokens for part in parts),
        num_trajectory_tokens=total,
    )
