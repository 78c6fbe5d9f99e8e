"""Load a model and its tokenizer from a Hugging Face folder or hub name."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from treepo.config import EngineConfig
from treepo.engine.support import check_config
from treepo.errors import CheckpointError, UnsupportedModelError


def load_model(path_or_id: str, config: EngineConfig) -> tuple[PreTrainedModel, Any]:
    """Return the causal LM and the tokenizer of `path_or_id`, on the config's device and dtype.

    Raises:
        CheckpointError: If there is no readable model or tokenizer.
        UnsupportedModelError: If it is no causal LM or of an unsupported architecture.
    """
    try:
        model_config = AutoConfig.from_pretrained(path_or_id)
        tokenizer = AutoTokenizer.from_pretrained(path_or_id)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"no readable model at {path_or_id}: {_first_line(error)}; give a folder with "
            "config.json, tokenizer and safetensors weights"
        ) from error
    name = (getattr(model_config, "architectures", None) or [type(model_config).__name__])[0]
    check_config(model_config, name)
    if type(model_config) not in AutoModelForCausalLM._model_mapping:
        raise UnsupportedModelError(f"{name} is not a causal language model")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path_or_id, dtype=getattr(torch, config.dtype.value)
        )
    except OSError as error:
        raise CheckpointError(f"cannot load {path_or_id}: {_first_line(error)}") from error
    return model.to(config.device), tokenizer  # type: ignore[arg-type]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
