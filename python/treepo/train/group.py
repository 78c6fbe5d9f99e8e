"""The processes of a run: one alone, or those that torchrun started.

All of them hold the same weights. Each samples its share of the prompts and trains on its share of
the trees; gradients are added up, so that a step is that of one process with all the trees.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn

from treepo.config import TrainConfig, Weights
from treepo.errors import GroupError, InvalidConfigError

T = TypeVar("T")
# The others wait while the first process evaluates. One that dies is noticed at once.
_TIMEOUT_S = 12 * 3600


class Group:
    """One process alone.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Returns every process's value, by rank."""
        return [value]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces the gradients by their sums over the processes."""

    def any(self, value: bool) -> bool:
        """Whether the value is true in a process."""
        return any(self.gather(value))

    def first(self, value: T) -> T:
        """Returns the first process's value."""
        return self.gather(value)[0]

    def share(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns which items this process takes, so that sizes are balanced; ascending, i64.

        The largest first, each to the process that has least.

        Args:
            sizes: size of each item, [n]; the same in all processes.
        """
        load = np.zeros(self.size, dtype=np.int64)
        owner = np.empty(len(sizes), dtype=np.int64)
        for item in np.argsort(-sizes, kind="stable"):
            owner[item] = load.argmin()
            load[owner[item]] += sizes[item]
        return np.flatnonzero(owner == self.rank)


class Processes(Group):
    """The processes that torchrun started."""

    def __init__(self, device: torch.device) -> None:
        """Joins the group; waits for the others.

        Args:
            device: where the model lives: NCCL on CUDA, gloo elsewhere.

        Raises:
            GroupError: if the others do not come.
        """
        if device.type == "cuda":
            # NCCL and what gathers objects use the current device.
            index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
            torch.cuda.set_device(index)
        with _named("the processes of the run did not meet"):
            if not distributed.is_initialized():
                distributed.init_process_group(
                    "nccl" if device.type == "cuda" else "gloo",
                    timeout=datetime.timedelta(seconds=_TIMEOUT_S),
                )
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()

    def gather(self, value: T) -> list[T]:
        """Returns every process's value, by rank."""
        found: list[T | None] = [None] * self.size
        with _named("a process of the run is gone or does not answer"):
            distributed.all_gather_object(found, value)
        return found  # type: ignore[return-value]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces the gradients by their sums over the processes, in one transfer a dtype.

        What has a gradient in no process keeps none, so that the optimizer leaves it alone.
        """
        trained = list(parameters)
        has_gradient = np.any(self.gather([p.grad is not None for p in trained]), axis=0)
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter, is_somewhere in zip(trained, has_gradient, strict=True):
            if not is_somewhere:
                continue
            if parameter.grad is None:  # This process had no trees.
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter.grad)
        with _named("a process of the run is gone or does not answer"):
            for gradients in by_dtype.values():
                flat = torch.cat([gradient.flatten() for gradient in gradients])
                distributed.all_reduce(flat)
                _scatter(flat, gradients)


def check_processes(config: TrainConfig, num_processes: int) -> None:
    """Checks that a config can run on so many processes.

    Raises:
        InvalidConfigError: if it cannot.
    """
    if num_processes == 1:
        return
    if config.max_unfinished_trees:
        raise InvalidConfigError(
            "max_unfinished_trees goes with one process: set it to 0 under torchrun"
        )
    if config.update.weights is Weights.WHOLE:
        return
    if config.update.max_tokens_per_part is not None:
        raise InvalidConfigError(
            "update.max_tokens_per_part goes with update.weights = whole: processes would cut "
            "their trees into different numbers of parts"
        )
    if config.lora.rank:
        raise InvalidConfigError(
            "lora.rank goes with update.weights = whole: adapters have little to split"
        )


def group_of_environment(device: torch.device) -> Group:
    """Returns the group that torchrun's environment variables describe."""
    return Processes(device) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Group()


def _scatter(flat: Tensor, targets: Sequence[Tensor]) -> None:
    first = 0
    for target in targets:
        target.copy_(flat[first : first + target.numel()].view_as(target))
        first += target.numel()


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise GroupError(
            f"{what} ({str(error).splitlines()[0]}); see the output of the others, then start the "
            f"run again with --resume"
        ) from None
