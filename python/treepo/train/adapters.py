"""LoRA through peft: adapters in a transformers model, and the model without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from treepo.config import LoraConfig
from treepo.errors import InvalidConfigError


def add_adapters(model: PreTrainedModel, config: LoraConfig) -> None:
    """Puts LoRA adapters on a model's linear layers; only they are trained afterwards.

    A model that has adapters already, as one loaded from a checkpoint of them has, keeps those.

    Args:
        model: a causal LM.
        config: rank and scale; rank 0 leaves the model as it is.

    Raises:
        InvalidConfigError: if peft is not there.
    """
    if config.rank == 0 or has_adapters(model):
        return
    try:
        import peft
    except ModuleNotFoundError:
        raise InvalidConfigError(
            f"lora.rank = {config.rank} needs peft: pip install 'treepo[lora]'"
        ) from None
    chosen = config.targets or "all-linear"
    model.add_adapter(
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides it by the rank
            target_modules=chosen if isinstance(chosen, str) else list(chosen),
            task_type="CAUSAL_LM",
        )
    )


def has_adapters(model: Any) -> bool:
    """Whether a model has adapters."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Within a `with` block the model computes as if it had no adapters."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()
