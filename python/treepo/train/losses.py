"""The clipped policy loss over trajectory tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from treepo.config import LossConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """The loss of one micro-batch and what describes it, each a scalar tensor.

    Attributes:
        loss: the loss, with a gradient.
        clipped_low: trajectory tokens whose ratio fell below the lower edge under a negative
            advantage, so that they have no gradient.
        clipped_high: trajectory tokens whose ratio rose above the upper edge under a positive
            advantage.
        abs_log_ratio: sum over trajectory tokens of abs(logprob - old_logprob).
        ratio_min: smallest probability ratio.
        ratio_max: largest probability ratio.
    """

    loss: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    abs_log_ratio: Tensor
    ratio_min: Tensor
    ratio_max: Tensor


def dapo_loss(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    config: LossConfig,
    num_loss_tokens: float,
    weight: Tensor | None = None,
) -> LossTerms:
    """Clipped policy loss with separate clip edges, a mean over tokens (DAPO).

    loss = -sum_t w_t min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t) / num_loss_tokens
    with r_t = exp(logprob_t - old_logprob_t); arXiv:2503.14476, eq. 8 and 12. A token that several
    trajectories share enters once for each of them.

    Args:
        logprob: current log-prob of every trajectory token, [S], S at least 1.
        old_logprob: log-prob when it was sampled, [S].
        advantage: advantage of the token in its trajectory, [S].
        config: the clip edges.
        num_loss_tokens: trajectory tokens of the whole optimizer step, over all micro-batches; with
            weights, the sum of theirs.
        weight: w_t, [S]; 1 if absent.

    Returns:
        The loss and its metrics; only the loss has a gradient.
    """
    log_ratio = logprob - old_logprob
    ratio = log_ratio.exp()
    low, high = 1 - config.clip_low, 1 + config.clip_high
    objective = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    if weight is not None:
        objective = objective * weight
    seen = ratio.detach()
    return LossTerms(
        loss=-objective.sum() / num_loss_tokens,
        clipped_low=((seen < low) & (advantage < 0)).sum(),
        clipped_high=((seen > high) & (advantage > 0)).sum(),
        abs_log_ratio=log_ratio.detach().abs().sum(),
        ratio_min=seen.min(),
        ratio_max=seen.max(),
    )
