import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"

import json
import sys
from pathlib import Path

import pytest

# Lets the tests import what they share from their own folder.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A random two-layer Llama with the embedded tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from treepo.tasks import embedded

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=18,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=0.3,
        pad_token_id=16,
        eos_token_id=17,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded.MODEL_PATH).save_pretrained(folder)
    return folder


@pytest.fixture
def write_rows(tmp_path):
    """Writes rows as JSON lines and returns the file."""

    def write(rows, name="data.jsonl") -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


@pytest.fixture
def single_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tiny_model_dir, tmp_path_factory):
    """An uninterrupted run of four steps, and its first and last weights."""
    import torch
    from tiny_runs import config, trainer, weights

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "finished"
    own = trainer(tiny_model_dir, config(folder))
    first = weights(own)
    result = own.train()
    return result, first, weights(own)
