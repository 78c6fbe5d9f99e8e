"""Which models the engine runs; every other one is refused by name."""

from transformers import PretrainedConfig

from treepo.errors import UnsupportedModelError

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
