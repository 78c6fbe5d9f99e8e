"""One tiny random model of every architecture that the engine is held to, in one table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

VOCAB_SIZE = 211
WINDOW = 7
MAX_LEN = 128
NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
# Weights this large give greedy completions that do not fall into a loop.
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": MAX_LEN,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
    **NO_SPECIAL_TOKENS,
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
WINDOW_THEN_FULL = ["sliding_attention", "full_attention"]


def heads(num_heads: int, num_kv_heads: int, head_dim: int) -> dict[str, int]:
    """Settings of two layers with these heads."""
    return {
        "num_hidden_layers": 2,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
    }


@dataclass(frozen=True, slots=True)
class TinyModel:
    """Classes of an architecture and what its tiny model sets apart from `SIZES`."""

    model_class: type[PreTrainedModel]
    config_class: type[PretrainedConfig]
    settings: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)

    def make(self, **settings: object) -> PreTrainedModel:
        """The model in fp32, the same at every call."""
        torch.manual_seed(0)
        config = self.config_class(**{**self.sizes, **self.settings, **settings})
        model = self.model_class(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    # Biases begin at 0 and norms at 1, which would hide one that is left out.
                    parameter += 0.1 * torch.randn_like(parameter)
        return model


MODELS = {
    "llama": TinyModel(LlamaForCausalLM, LlamaConfig),
    "qwen2": TinyModel(Qwen2ForCausalLM, Qwen2Config),
    "qwen2_window": TinyModel(
        Qwen2ForCausalLM,
        Qwen2Config,
        {
            **heads(3, 3, 16),
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
    ),
    "qwen3": TinyModel(Qwen3ForCausalLM, Qwen3Config, heads(3, 1, 24)),
    "mistral": TinyModel(
        MistralForCausalLM, MistralConfig, {**heads(4, 2, 16), "sliding_window": WINDOW}
    ),
    # Queries from position 8 on are scaled by their position.
    "ministral3": TinyModel(
        Ministral3ForCausalLM,
        Ministral3Config,
        {
            **heads(4, 2, 16),
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": MAX_LEN / 8,
                "original_max_position_embeddings": 8,
                "llama_4_scaling_beta": 0.5,
            },
        },
    ),
    "gemma2": TinyModel(
        Gemma2ForCausalLM,
        Gemma2Config,
        {
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": TinyModel(
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            **heads(2, 1, 24),
            "query_pre_attn_scalar": 24,
            "initializer_range": 0.15,
            "sliding_window": WINDOW,
            "layer_types": WINDOW_THEN_FULL,
        },
    ),
    "phi3": TinyModel(Phi3ForCausalLM, Phi3Config, heads(6, 3, 8)),
    "olmo2": TinyModel(
        Olmo2ForCausalLM, Olmo2Config, {**heads(4, 4, 12), "initializer_range": 0.6}
    ),
    "granite": TinyModel(
        GraniteForCausalLM,
        GraniteConfig,
        {
            **heads(6, 3, 8),
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "mixtral": TinyModel(
        MixtralForCausalLM,
        MixtralConfig,
        {**heads(4, 2, 16), "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen3_moe": TinyModel(
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {
            **heads(3, 1, 24),
            "initializer_range": 0.6,
            "moe_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "smollm3": TinyModel(
        SmolLM3ForCausalLM, SmolLM3Config, {**heads(4, 2, 12), "no_rope_layer_interval": 2}
    ),
    "cohere2": TinyModel(
        Cohere2ForCausalLM,
        Cohere2Config,
        {
            **heads(4, 1, 16),
            "logit_scale": 0.5,
            "sliding_window": WINDOW,
            "layer_types": WINDOW_THEN_FULL,
        },
    ),
    "starcoder2": TinyModel(
        Starcoder2ForCausalLM,
        Starcoder2Config,
        {**heads(6, 2, 8), "initializer_range": 0.4, "sliding_window": WINDOW},
    ),
    "gpt2": TinyModel(
        GPT2LMHeadModel,
        GPT2Config,
        {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": MAX_LEN},
        {"initializer_range": 0.6, **NO_SPECIAL_TOKENS},
    ),
    "gpt_oss": TinyModel(
        GptOssForCausalLM,
        GptOssConfig,
        {"sliding_window": WINDOW, "num_local_experts": 4, "rope_parameters": ROPE},
    ),
}
