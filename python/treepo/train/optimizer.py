"""AdamW over a model's trainable parameters and its learning rate."""

from typing import Any

import torch
from torch import nn

from treepo.config import OptimizerConfig, Schedule
from treepo.errors import InvalidConfigError, NotFiniteError
from treepo.train.split_tensors import whole


def build(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over the parameters that require a gradient.

    Raises:
        InvalidConfigError: No parameter requires a gradient.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise InvalidConfigError("no parameter of the model requires a gradient; unfreeze some")
    return torch.optim.AdamW(
        trainable,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(
    step: int, num_steps: int, config: OptimizerConfig, *, spent: float = 0.0
) -> float:
    """Return the learning rate of a rollout step.

    Args:
        step: Finished rollout steps, from 0.
        num_steps: Planned rollout steps.
        config: Peak, warm-up and schedule.
        spent: Fraction of the run's tokens that are sampled; counts where it is ahead of the steps.

    Returns:
        A straight line up to the peak over the warm-up; after it the peak, or a straight line
        down that reaches `final_fraction` of the peak at the last step.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule is Schedule.CONSTANT:
        return config.learning_rate
    span = max(1, num_steps - 1 - config.warmup_steps)
    progress = min(1.0, max((step - config.warmup_steps) / span, spent))
    return config.learning_rate * (1 - (1 - config.final_fraction) * progress)


def apply(optimizer: Any, learning_rate: float, grad_clip: float) -> float:
    """Clip the gradient, make one optimizer step and clear the gradient.

    Args:
        optimizer: What `build` returned.
        learning_rate: For this step.
        grad_clip: Global norm that the gradient is scaled down to.

    Returns:
        The gradient's global norm before clipping.

    Raises:
        NotFiniteError: The norm is NaN or infinite; the weights are as before.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(whole(nn.utils.clip_grad_norm_(parameters, grad_clip)))
    if not torch.isfinite(torch.tensor(norm)):
        raise NotFiniteError(
            f"the gradient's norm is {norm}; the weights are unchanged, lower "
            "optimizer.learning_rate and resume from the last checkpoint"
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    for parameter in parameters:
        # A fused step does not say that it wrote; packed copies of weights follow by the version.
        torch.autograd.graph.increment_version(parameter)
    optimizer.zero_grad(set_to_none=True)
    return norm
