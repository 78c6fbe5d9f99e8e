"""LoRA through peft: adapters in a transformers model, and the model without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from treepo.config import LoraConfig
from treepo.errors import CheckpointError, InvalidConfigError

FOLDER = "adapter"
"""Folder of a checkpoint with the adapters alone, as peft loads them."""
_WEIGHTS = "adapter_model.safetensors"
_BASE = ".base_layer"


class Adapters:
    """The adapters of a model; only they are trained."""

    def __init__(self, model: PreTrainedModel, config: LoraConfig, seed: int) -> None:
        """Puts adapters on the linear layers of a model, in place.

        Args:
            model: a causal LM.
            config: rank, scale and layers.
            seed: of their first weights.

        Raises:
            InvalidConfigError: if peft is not there, or there are no such layers.
        """
        try:
            import peft
        except ModuleNotFoundError:
            raise InvalidConfigError(
                f"lora.rank = {config.rank} needs peft: pip install 'treepo[lora]'"
            ) from None
        targets: Any = list(config.targets) if config.targets else "all-linear"
        settings = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it by the rank
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self._peft: Any = peft.get_peft_model(model, settings)
        except ValueError as error:
            raise InvalidConfigError(f"lora.targets: {str(error).splitlines()[0]}") from None
        self._model = model
        self._require_linear()

    def _require_linear(self) -> None:
        """Refuse adapters whose effect has no place in the weights of a plain model."""
        for name, module in self._model.named_modules():
            if getattr(module, "lora_embedding_A", None):
                self._peft.unload()
                raise InvalidConfigError(
                    f"lora.targets: {name} is an embedding; adapters go on linear layers"
                )

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within a `with` block the model computes as if it had no adapters."""
        with self._peft.disable_adapter():
            yield

    def merged(self) -> dict[str, Tensor]:
        """Returns the weights of a plain model that computes what this one does with adapters."""
        changes = {
            name: module.get_delta_weight("default")
            for name, module in self._model.named_modules()
            if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {})
        }
        found = {}
        for name, value in self._model.state_dict().items():
            if ".lora_" in name:
                continue
            module, _, kind = name.rpartition(".")
            change = changes.get(module.removesuffix(_BASE)) if kind == "weight" else None
            found[name.replace(_BASE, "")] = value if change is None else value + change
        return found

    def save(self, folder: Path) -> None:
        """Writes the adapters alone to a folder."""
        self._peft.save_pretrained(folder / FOLDER)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: if it cannot be read.
        """
        from peft import set_peft_model_state_dict

        file = folder / FOLDER / _WEIGHTS
        try:
            set_peft_model_state_dict(self._peft, load_file(file))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {file}: {error}") from None
