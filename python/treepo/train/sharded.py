"""A copy of a model whose weights, gradients and optimizer state are split over the processes.

The model that samples stays whole in every process; the copy is trained with torch's FSDP2
(`fully_shard`, a decoder layer at a time). Its weights flow back after each update.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from treepo.train.step import TrainStep

T = TypeVar("T")
_ENTRY = "treepo_enter"


class ShardedModel:
    """The trained copy of a model.

    Attributes:
        model: the copy.
        step: forward and backward of the copy; all processes make a pass together.
    """

    def __init__(self, whole: PreTrainedModel, step: TrainStep) -> None:
        """Copies a model and leaves each process of the default group its part of the weights.

        Args:
            whole: the model that samples; `publish` writes to it.
            step: forward and backward of that model.
        """
        self._whole = whole
        self.model: PreTrainedModel = copy.deepcopy(whole)
        self.step = step.on(self.model, self._enter)
        self._split()

    def _split(self) -> None:
        model: Any = self.model
        mesh = init_device_mesh(model.device.type, (distributed.get_world_size(),))
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                fully_shard(module, mesh=mesh)
        setattr(model, _ENTRY, MethodType(_call, model))
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, _ENTRY)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # The loss has the global normaliser: gradients are added up, not averaged.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def _enter(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that runs the model and reads its head, with the weights in place."""
        result: T = getattr(self.model, _ENTRY)(function, *args)
        return result

    def take(self) -> None:
        """Takes the weights of the model that samples."""
        with torch.no_grad():
            for own, other in self._pairs():
                own.copy_(like(own, other.detach()))

    def publish(self) -> None:
        """Gives the model that samples the weights of the copy; all processes do so together."""
        with torch.no_grad():
            for own, other in self._pairs():
                if own.requires_grad:
                    other.copy_(whole(own.detach()))

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return list(zip(self.model.parameters(), self._whole.parameters(), strict=True))


def whole(tensor: Tensor) -> Tensor:
    """Returns all of a tensor that may be split; all processes ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Returns this process's part of a whole tensor, split as a parameter is.

    Args:
        parameter: split or not.
        tensor: of the parameter's whole shape; equal in all processes.
    """
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    placed = tensor.to(parameter.device)
    return distribute_tensor(
        placed, parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def _call(_: nn.Module, function: Callable[..., T], *args: Any) -> T:
    return function(*args)
