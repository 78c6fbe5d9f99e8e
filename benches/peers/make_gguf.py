"""Write a Llama of Hugging Face as a GGUF file in fp32 or bf16, without its tokenizer.

    python benches/peers/make_gguf.py --model models/SmolLM2-135M-Instruct --output FILE

Needs `pip install 'treepo[peers]'`. llama.cpp rotates neighbouring pairs of a head's dimensions and
Hugging Face those that are half a head apart, so the rows of the query and key projections are
put in llama.cpp's order.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
FILE_TYPES = {
    "float32": gguf.GGMLQuantizationType.F32,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
}


def write(model_folder: str, dtype: str, output: Path) -> None:
    """Convert the Llama in `model_folder`; norm weights stay fp32 as llama.cpp wants them."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    config = model.config
    if config.model_type != "llama":
        raise ValueError(f"{model_folder} is a {config.model_type} model, llama is understood")
    output.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(output, "llama")
    add_settings(writer, config)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = interleave(values, len(values) // head_dim(config))
        kind = FILE_TYPES[dtype] if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_settings(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the shapes and constants; the file has token ids only, no vocabulary."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def interleave(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Order the rows of each head so that row i and i + head_dim / 2 become neighbours."""
    halves = weight.reshape(num_heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def head_dim(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of Hugging Face's Llama."""
    stem = name.removesuffix(".weight")
    if stem in NAMES:
        return f"{NAMES[stem]}.weight"
    _, _, index, part = stem.split(".", 3)
    return f"blk.{index}.{BLOCK_NAMES[part]}.weight"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--dtype", choices=sorted(FILE_TYPES), default="float32")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    write(options.model, options.dtype, options.output)
    print(options.output)


if __name__ == "__main__":
    main()
