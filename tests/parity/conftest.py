"""Tiny random models, prompts for them, and the attention back ends that are held to one oracle."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from treepo.config import Attention, EngineConfig, Packing

# Lets the tests import what they share from their own folder.
sys.path.insert(0, str(Path(__file__).parent))

from tiny_models import MODELS, VOCAB_SIZE

# Every test that takes `make_config` runs once with each of these settings of `EngineConfig`.
BACKENDS = {
    "torch": {"attention": Attention.TORCH, "packing": Packing.NEVER},
    "native": {"attention": Attention.NATIVE},
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """A function that builds a family's tiny fp32 model, the same at every call."""
    return lambda family, **settings: MODELS[family].make(**settings)


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS.keys())
def make_config(request: pytest.FixtureRequest) -> Callable[..., EngineConfig]:
    """A function that builds an engine config with one attention back end."""
    return lambda **settings: EngineConfig(**request.param, **settings)


@pytest.fixture
def prompts() -> list[np.ndarray]:
    """Four prompts of 1 to 30 random tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB_SIZE, n).astype(np.uint32) for n in (1, 5, 17, 30)]
