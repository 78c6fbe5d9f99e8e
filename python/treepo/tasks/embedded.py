"""The task and the model that treepo uses where none is named.

The model folder next to this file loads like any other, without a network:
`AutoModelForCausalLM.from_pretrained(embedded.MODEL_PATH)`.
"""

from pathlib import Path

from treepo.tasks.multiplication import STEP_LEN, Example, heldout_examples, train_examples

__all__ = [
    "MODEL_PATH",
    "REWARD",
    "STEP_LEN",
    "Example",
    "heldout_examples",
    "train_examples",
]

MODEL_PATH = Path(__file__).with_name("model")
"""Hugging Face folder of the packaged model; its README says how it was made."""

REWARD = "treepo.tasks.multiplication:product_reward"
"""Name of the task's reward function, as `treepo.rewards.resolve` takes it."""
