"""Log-probs of the policy that the loss holds the trained one to."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from treepo.config import LossConfig
from treepo.train.adapters import has_adapters, without_adapters
from treepo.train.pack import PackedForest
from treepo.train.step import TrainStep

F32 = npt.NDArray[np.float32]


class Reference:
    """A policy that does not change: another model, a copy, or the model without its adapters."""

    def __init__(
        self, model: PreTrainedModel, temperature: float, other: PreTrainedModel | None = None
    ) -> None:
        """Keeps the first weights.

        Args:
            model: the model that is trained, before its first optimizer step. With adapters
                (LoRA) it serves as its own reference; without, it is copied.
            temperature: the temperature of all log-probs.
            other: the reference model, if it is another one.
        """
        self._is_model_without_adapters = other is None and has_adapters(model)
        self._model: Any = model
        chosen: Any = other
        if chosen is None:
            chosen = model if self._is_model_without_adapters else copy.deepcopy(model)
        self._step = TrainStep(chosen, LossConfig(), temperature)

    def logprobs(self, packed: PackedForest) -> F32:
        """Returns log-probs of the unique sampled tokens, f32[U]."""
        with self._switched():
            return self._step.fixed_logprobs(packed)

    def _switched(self) -> AbstractContextManager[None]:
        if self._is_model_without_adapters:
            return without_adapters(self._model)
        return nullcontext()
