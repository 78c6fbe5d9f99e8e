"""Load a model and its tokenizer from a Hugging Face folder or hub name."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from treepo.config import EngineConfig
from treepo.engine.support import check_config
from treepo.errors import CheckpointError, UnsupportedModelError


def load_model(path_or_id: str | Path, config: EngineConfig) -> tuple[PreTrainedModel, Any]:
    """Return the causal LM and the tokenizer of `path_or_id`, on the config's device and dtype.

    Args:
        path_or_id: A Hugging Face folder, or a name on the hub.
        config: `device` and `dtype` are applied.

    Raises:
        CheckpointError: If there is no readable model or tokenizer.
        UnsupportedModelError: If it is no causal LM or of an unsupported architecture.
    """
    name = str(path_or_id)
    if not Path(name).is_dir() and not _may_be_hub_name(name):
        raise CheckpointError(f"there is no folder {name}; give one with a Hugging Face model")
    try:
        model_config = AutoConfig.from_pretrained(name)
        class_name = (
            getattr(model_config, "architectures", None) or [type(model_config).__name__]
        )[0]
        check_config(model_config, class_name)
        if type(model_config) not in AutoModelForCausalLM._model_mapping:
            raise UnsupportedModelError(f"{class_name} is not a causal language model")
        tokenizer = AutoTokenizer.from_pretrained(name)
        dtype = getattr(torch, config.dtype.value)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except UnsupportedModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{_what_failed(name)}: {_first_line(error)}") from error
    return model.to(config.device), tokenizer  # type: ignore[arg-type]


def _may_be_hub_name(name: str) -> bool:
    return name[:1] not in ("/", ".", "~") and name.count("/") <= 1


def _what_failed(name: str) -> str:
    if Path(name).is_dir():
        return f"cannot load the model {name}"
    return f"there is no folder {name}, and it cannot be loaded from the hub"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
