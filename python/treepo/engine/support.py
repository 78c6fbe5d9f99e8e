"""Which models the engine runs; every other one is refused by name."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from treepo.errors import InvalidConfigError, UnsupportedModelError

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_MODALITIES = ("vision_config", "audio_config")


def check_config(config: PretrainedConfig, name: str) -> None:
    """Refuse a model whose configuration shows an architecture that is not supported.

    Args:
        config: The model's configuration.
        name: The model's class or path, for the message.

    Raises:
        UnsupportedModelError: For encoder-decoder, vision, audio and quantised models, and for
            layers that are not full or sliding-window attention (state-space, linear, chunked).
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder model; a causal LM is needed")
    for modality in _MODALITIES:
        if getattr(config, modality, None) is not None:
            raise UnsupportedModelError(f"{name} is a multimodal model; only text is supported")
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(f"{name} has quantised weights; load it in full precision")
    types = set(getattr(config.get_text_config(decoder=True), "layer_types", None) or ())
    if unsupported := sorted(types - _LAYER_TYPES):
        raise UnsupportedModelError(
            f"{name} has {', '.join(unsupported)} layers; only full and sliding-window attention "
            "are supported"
        )


def check_windows(config: PretrainedConfig, windows: Sequence[int | None], name: str) -> None:
    """Refuse a model with a sliding window that only its own attention mask knows.

    Args:
        config: The model's configuration.
        windows: The window that each layer hands to its attention function, in layer order.
        name: The model's class, for the message.

    Raises:
        UnsupportedModelError: A layer has a window and hands none on: it would see everything.
    """
    text = config.get_text_config(decoder=True)
    types = getattr(text, "layer_types", None)
    for layer, window in enumerate(windows):
        has_window = types[layer] == "sliding_attention" if types else _has_window(text)
        if has_window and window is None:
            raise UnsupportedModelError(
                f"{name} keeps the sliding window of layer {layer} to its own attention mask; such "
                "models are not supported"
            )


def _has_window(text: PretrainedConfig) -> bool:
    """Whether a configuration that does not list its layers limits attention to a window."""
    window = getattr(text, "sliding_window", None)
    if not hasattr(type(text), "sliding_window"):
        return False  # A left-over of a converted file, which no code reads.
    if window is None or not getattr(text, "use_sliding_window", True):
        return False
    longest = getattr(text, "max_position_embeddings", None)
    return longest is None or int(window) < int(longest)


def check_rope(config: PretrainedConfig, max_model_len: int) -> None:
    """Refuse positions at which one row's rotary embedding would depend on the others'.

    Beyond its original length longrope takes the frequencies of the longest row of a call for all.

    Args:
        config: The model's configuration.
        max_model_len: Tokens of a path at most.

    Raises:
        InvalidConfigError: A path may be longer than the length up to which all rows are rotated
            alike.
    """
    text = config.get_text_config(decoder=True)
    for rope in _ropes(getattr(text, "rope_parameters", None) or {}):
        if rope.get("rope_type") != "longrope":
            continue
        limit = rope["original_max_position_embeddings"]
        if max_model_len > limit:
            raise InvalidConfigError(
                f"max_model_len = {max_model_len}: beyond {limit} tokens longrope turns every row "
                f"of a step as its longest one, and answers would depend on what else is sampled; "
                f"set engine.max_model_len to at most {limit}"
            )


def _ropes(parameters: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the rotary parameters of a model, or those of each of its types of layer."""
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (x for x in parameters.values() if isinstance(x, Mapping))
