"""Log-probs of the policy that the loss holds the trained one to."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from treepo.config import LossConfig, UpdateConfig
from treepo.train.adapters import Adapters
from treepo.train.pack import PackedForest
from treepo.train.step import TrainStep

F32 = npt.NDArray[np.float32]


class Reference:
    """A policy that does not change: another model, a copy, or the model without its adapters."""

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float,
        update: UpdateConfig,
        *,
        adapters: Adapters | None = None,
        other: PreTrainedModel | None = None,
    ) -> None:
        """Keeps the first weights.

        Args:
            model: the model that is trained, before its first optimizer step; it is copied, unless
                one of the next two is there.
            temperature: the temperature of all log-probs.
            update: number format and parts.
            adapters: the model's adapters, without which it is the reference.
            other: the reference model, if it is another one.
        """
        self._adapters = None if other is not None else adapters
        chosen: Any = other
        if chosen is None:
            chosen = copy.deepcopy(model) if adapters is None else model
        self._step = TrainStep(chosen, LossConfig(), temperature, update=update)

    def logprobs(self, packed: PackedForest) -> F32:
        """Returns log-probs of the unique sampled tokens, f32[U]."""
        with nullcontext() if self._adapters is None else self._adapters.disabled():
            return self._step.fixed_logprobs(packed)
