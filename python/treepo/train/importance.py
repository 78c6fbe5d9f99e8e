"""Importance correction where sampler and trainer disagree about a token's probability."""

from __future__ import annotations

import torch
from torch import Tensor

from treepo.config import Correct, CorrectionConfig, Ratio
from treepo.train.losses import trajectory_sums


def correction(
    trainer: Tensor, sampler: Tensor, trajectory: Tensor, config: CorrectionConfig
) -> Tensor | None:
    """Weights that make up for tokens sampled from another distribution than the trainer's.

    w = exp(trainer - sampler) of a token, or the product of that over its trajectory. Truncated:
    min(w, max_ratio) (Espeholt et al., arXiv:1802.01561). Masked: w within [1 / max_ratio,
    max_ratio], else 0.

    Args:
        trainer: log-prob by the code that trains, at the weights that sampled, [S].
        sampler: log-prob recorded when the token was sampled, [S].
        trajectory: trajectory of each token, counted from 0, i64[S].
        config: what is done.

    Returns:
        Weights without a gradient, [S]; None where nothing is corrected.
    """
    if config.by is Correct.NOTHING:
        return None
    difference = (trainer - sampler).detach()
    if config.level is Ratio.TRAJECTORY:
        count = int(trajectory.max()) + 1
        difference = trajectory_sums(difference, trajectory, count)[trajectory]
    weight = difference.exp()
    if config.by is Correct.TRUNCATE:
        return weight.clamp(max=config.max_ratio)
    is_near = (weight >= 1 / config.max_ratio) & (weight <= config.max_ratio)
    return torch.where(is_near, weight, torch.zeros_like(weight))
