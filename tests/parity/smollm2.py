"""SmolLM2-135M-Instruct, prepared by tools/prepare_smollm2.py, and questions for it."""

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from treepo.config import Dtype, EngineConfig
from treepo.engine.load import load_model

FOLDER = Path(
    os.environ.get(
        "TREEPO_SMOLLM2", Path(__file__).resolve().parents[2] / "models/SmolLM2-135M-Instruct"
    )
)
QUESTIONS = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain why the sky is blue to a child.",
    "List three uses of a paper clip.",
    "Tom has 12 apples and buys 7 more. How many apples does he have?",
    "Translate 'good morning' into Spanish.",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
    "Summarise the story of Cinderella in two sentences.",
    "What is the difference between weather and climate?",
    "Name five animals that live in the desert.",
    "How does a bicycle stay upright?",
    "Write a Python function that reverses a string.",
    "What should I pack for a weekend in the mountains?",
    "Describe the taste of a lemon.",
    "Why do leaves change colour in autumn?",
]


def load(dtype: Dtype = Dtype.FLOAT32) -> tuple[PreTrainedModel, Any]:
    """The model in evaluation mode and its tokenizer; fails the test if they are not there."""
    if not FOLDER.is_dir():
        pytest.fail(f"{FOLDER} does not exist; run: python tools/prepare_smollm2.py")
    model, tokenizer = load_model(FOLDER, EngineConfig(dtype=dtype))
    return model.eval(), tokenizer
