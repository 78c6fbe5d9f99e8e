"""The clipped policy loss over trajectory tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from treepo.config import Kl, LossConfig, Objective, Ratio
from treepo.errors import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """The loss of one micro-batch and what describes it, each a scalar tensor.

    Attributes:
        loss: the loss, with a gradient.
        clipped_low: trajectory tokens whose ratio fell below the lower edge under a negative
            advantage, so that the clipped objective has no gradient there.
        clipped_high: trajectory tokens whose ratio rose above the upper edge under a positive
            advantage.
        ratio_min: smallest probability ratio.
        ratio_max: largest probability ratio.
        kl: sum over trajectory tokens of the divergence from the reference; 0 without one.
    """

    loss: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    ratio_min: Tensor
    ratio_max: Tensor
    kl: Tensor


def policy_loss(
    logprob: Tensor,
    old_logprob: Tensor,
    advantage: Tensor,
    config: LossConfig,
    total_weight: float,
    *,
    weight: Tensor | None = None,
    trajectory: Tensor | None = None,
    correction: Tensor | None = None,
    reference: Tensor | None = None,
    entropy: Tensor | None = None,
) -> LossTerms:
    """Clipped policy loss over trajectory tokens.

    loss = -sum_t w_t (C_t J_t - kl_weight KL_t + entropy_weight H_t) / total_weight. With the
    ratio r_t and c(r) = clip(r, 1 - clip_low, 1 + clip_high), J_t = min(r_t A_t, c(r_t) A_t), and
    with dual_clip d at least d A_t where A_t is negative; or, CISPO, J_t = c(r_t) A_t logprob_t
    with c(r_t) held fixed. Sources: see `treepo.config.loss`. A token that several trajectories
    share enters once for each of them.

    Args:
        logprob: current log-prob of every trajectory token, [S], S at least 1.
        old_logprob: log-prob when it was sampled, [S].
        advantage: advantage of the token in its trajectory, [S].
        config: ratio, objective and clip edges.
        total_weight: sum of the weights of the whole optimizer step, over all micro-batches.
        weight: w_t, [S]; 1 if absent.
        trajectory: trajectory of each token, counted from 0, i64[S]; for ratios of trajectories.
        correction: C_t, [S]; 1 if absent, see `treepo.train.importance`.
        reference: the reference's log-prob, [S]; for KL_t.
        entropy: H_t with a gradient, [S]; for the bonus.

    Returns:
        The loss and its metrics; only the loss has a gradient.
    """
    log_ratio = logprob - old_logprob
    ratio = _compared(log_ratio, config.ratio, trajectory).exp()
    low, high = 1 - config.clip_low, 1 + config.clip_high
    if config.objective is Objective.CISPO:
        objective = ratio.detach().clamp(low, high) * advantage * logprob
    else:
        objective = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    if config.dual_clip is not None:
        floor = config.dual_clip * advantage
        objective = torch.where(advantage < 0, torch.maximum(objective, floor), objective)
    if correction is not None:
        objective = objective * correction
    spread = torch.zeros_like(logprob)
    if reference is not None:
        spread = divergence(logprob - reference, config.kl)
        if config.kl_weight:  # Else it is only looked at, and may be infinite.
            objective = objective - config.kl_weight * spread
    if entropy is not None:
        objective = objective + config.entropy_weight * entropy
    if weight is not None:
        objective = objective * weight
    seen = ratio.detach()
    return LossTerms(
        loss=-objective.sum() / total_weight,
        clipped_low=((seen < low) & (advantage < 0)).sum(),
        clipped_high=((seen > high) & (advantage > 0)).sum(),
        ratio_min=seen.min(),
        ratio_max=seen.max(),
        kl=spread.detach().sum(),
    )


def divergence(difference: Tensor, kind: Kl) -> Tensor:
    """Estimates each token's divergence from the reference.

    Args:
        difference: log-prob minus the reference's, [n].
        kind: the estimate.

    Returns:
        [n].
    """
    if kind is Kl.K1:
        return difference
    if kind is Kl.K2:
        return difference.square() / 2
    return torch.exp(-difference) - 1 + difference


def _compared(log_ratio: Tensor, ratio: Ratio, trajectory: Tensor | None) -> Tensor:
    """Log of the ratio that each token is clipped by, [S]."""
    if ratio is Ratio.TOKEN:
        return log_ratio
    if trajectory is None:
        raise InvalidInputError("ratios of trajectories need the trajectory of each token")
    count = int(trajectory.max()) + 1
    total = trajectory_sums(log_ratio, trajectory, count)
    length = trajectory_sums(torch.ones_like(log_ratio), trajectory, count)
    return (total / length)[trajectory]


def trajectory_sums(values: Tensor, trajectory: Tensor, count: int) -> Tensor:
    """Sum of the values of each trajectory's tokens, [count].

    Args:
        values: one a trajectory token, [S].
        trajectory: trajectory of each token, counted from 0, i64[S].
        count: number of trajectories.
    """
    return values.new_zeros(count).index_add(0, trajectory, values)
