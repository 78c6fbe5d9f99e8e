"""Tensors that may be split over processes (torch's DTensor), and whole ones."""

from typing import Any

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns all of a tensor that may be split; all processes ask together."""
    split: Any = tensor
    full: Tensor = split.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Returns this process's part of a whole tensor, split as a parameter is.

    Args:
        parameter: split or not.
        tensor: of the parameter's whole shape, else it stays whole; equal in all processes.
    """
    if not hasattr(parameter, "placements") or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    split: Any = parameter
    placed = tensor.to(parameter.device)
    return distribute_tensor(placed, split.device_mesh, split.placements, src_data_rank=None)
