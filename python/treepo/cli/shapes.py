"""What a model's configuration file alone says about its memory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treepo.config import Dtype

_BYTES = {Dtype.FLOAT32: 4, Dtype.BFLOAT16: 2, Dtype.FLOAT16: 2}


_GPT2_NAMES = {
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Sizes of a causal LM, read without loading it.

    Attributes:
        numbers_per_token: Numbers that the keys and values of one token have over all layers.
        max_model_len: Tokens that the model has positions for; None if it does not say.
    """

    numbers_per_token: int
    max_model_len: int | None

    def bytes_per_token(self, dtype: Dtype) -> int:
        """Return the bytes of one token's keys and values.

        On a CPU the pool fills up values to a multiple of 16 and keys to an even number.
        """
        return self.numbers_per_token * _BYTES[dtype]


def model_shape(folder: str | Path) -> ModelShape | None:
    """Return the sizes of the model in a folder.

    Args:
        folder: A Hugging Face folder.

    Returns:
        None if there is no readable `config.json`, or it describes attention with other keys and
        values than one of each for every key head.
    """
    try:
        data = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict):
        return None
    try:
        config = data.get("text_config") or data
        return None if "kv_lora_rank" in config else _shape(config)
    except (AttributeError, KeyError, TypeError, ZeroDivisionError):
        return None


def _shape(given: dict[str, Any]) -> ModelShape:
    config = {**{name: given[old] for old, name in _GPT2_NAMES.items() if old in given}, **given}
    num_heads = config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    return ModelShape(
        numbers_per_token=2 * config["num_hidden_layers"] * num_kv_heads * head_dim,
        max_model_len=config.get("max_position_embeddings"),
    )
