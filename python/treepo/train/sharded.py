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
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from treepo.errors import InvalidConfigError
from treepo.train.split_tensors import like, whole
from treepo.train.step import TrainStep

T = TypeVar("T")
_ENTRY = "treepo_enter"


class ShardedModel:
    """The trained copy of a model.

    Attributes:
        model: the copy.
        step: forward and backward of the copy; all processes make a pass together.
    """

    def __init__(self, sampling: PreTrainedModel, step: TrainStep) -> None:
        """Copies a model and leaves each process of the default group its part of the weights.

        Args:
            sampling: the model that samples; `publish` writes to it.
            step: forward and backward of that model.

        Raises:
            InvalidConfigError: if this torch cannot add gradients up.
        """
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise InvalidConfigError(
                f"update.weights = sharded needs a newer torch than {torch.__version__}, whose "
                f"FSDP2 only averages gradients: update it, or take update.weights = whole"
            )
        self._sampling = sampling
        self.model: PreTrainedModel = copy.deepcopy(sampling)
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
        return list(zip(self.model.parameters(), self._sampling.parameters(), strict=True))


def _call(_: nn.Module, function: Callable[..., T], *args: Any) -> T:
    return function(*args)
