"""Tiny random models whose greedy continuations do not loop, and prompts for them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB_SIZE = 211
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {"sliding_window": 7, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 30.0},
    ),
    "gpt_oss": (
        GptOssForCausalLM,
        GptOssConfig,
        {
            "sliding_window": 7,
            "num_local_experts": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_model() -> Callable[[str], PreTrainedModel]:
    """A function that builds a family's tiny fp32 model, the same at every call."""

    def make(family: str, **settings: object) -> PreTrainedModel:
        model_class, config_class, extra = FAMILIES[family]
        torch.manual_seed(0)
        return model_class(config_class(**{**SIZES, **extra, **settings})).eval()

    return make


@pytest.fixture
def prompts() -> list[np.ndarray]:
    """Four prompts of 1 to 30 random tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB_SIZE, n).astype(np.uint32) for n in (1, 5, 17, 30)]
