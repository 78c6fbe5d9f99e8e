"""Rollouts of small models whose decoder layers are computed as wholes, or in parts."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from storms import differing_values
from tiny_models import MODELS, VOCAB_SIZE

from treepo.config import EngineConfig, SamplingParams, SearchConfig
from treepo.engine.fused import products
from treepo.engine.fused.direct import DirectForward
from treepo.engine.fused.whole import WholeLayers
from treepo.engine.kernels import Kernels

FAMILIES = ["llama", "mistral", "qwen2", "qwen2_window", "qwen3", "smollm3"]
HAS_PANELS = products.uses_panels(torch.float32, Kernels())
IS_FAST = products.packing(torch.bfloat16, Kernels()) is not None
DTYPES = [torch.float32, *([torch.bfloat16] if IS_FAST else [])]
SEARCH = SearchConfig(width=5, segment_len=8, max_depth=4)
TEMPERATURE = 0.8
CONFIG = EngineConfig(block_size=4, max_num_batched_tokens=24)


def make(family, dtype=torch.float32, **settings):
    return MODELS[family].make(**settings).to(dtype)


def sample(engine, on_step=None):
    """Trees of three prompts, longer and shorter than a window."""
    rng = np.random.default_rng(4)
    prompts = [rng.integers(0, VOCAB_SIZE, n).astype(np.uint32) for n in (1, 20, 33)]
    params = SamplingParams(temperature=TEMPERATURE)
    return engine.rollout(prompts, SEARCH, params, seed=3, on_step=on_step)


@contextmanager
def whole_layers():
    """Yield a list that gets, for each layer that runs, whether it was computed as a whole."""
    calls = []
    own, own_direct = WholeLayers.__call__, DirectForward.__call__

    def direct(self, *args):
        logits = own_direct(self, *args)
        if logits is not None:
            calls.extend([True] * self.ends.path[0].config.num_hidden_layers)
        return logits

    def call(self, which, *args):
        output = own(self, which, *args)
        num_layers = len(self.modules[which])
        if output is not None or num_layers == 1:  # Several go on one by one.
            calls.extend([output is not None] * num_layers)
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WholeLayers, "__call__", call)
        patch.setattr(DirectForward, "__call__", direct)
        yield calls


@contextmanager
def direct_calls():
    """Yield a list that gets, for each step, whether it was one call of the kernels."""
    calls = []
    own = DirectForward.__call__

    def direct(self, *args):
        logits = own(self, *args)
        calls.append(logits is not None)
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirectForward, "__call__", direct)
        yield calls


@contextmanager
def by_modules():
    """Within it the model's own forward runs, whose layers may be wholes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirectForward, "__call__", lambda *_: None)
        yield


@contextmanager
def by_parts():
    """Within it no layer is computed as a whole."""
    with by_modules(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(WholeLayers, "__call__", lambda *_: None)
        yield


def in_parts(engine):
    """What `sample` returns where no layer is computed as a whole."""
    with by_parts():
        return sample(engine)


def check_same(forest, expected):
    assert expected.num_tokens > 200
    assert differing_values(forest.columns(), expected.columns()) == {}


def check_whole(engine, expected):
    """Every layer is computed as a whole, where products are the kernels', and no bit differs."""
    with whole_layers() as calls:
        forest = sample(engine)
    policy, num_layers = engine.policy, engine.model.config.num_hidden_layers
    is_whole = products.uses_panels(policy.model.dtype, policy.kernels)
    assert calls == [is_whole] * num_layers * engine.stats.steps
    check_same(forest, expected)


def check_parts(engine):
    """No layer is computed as a whole, and no bit differs."""
    with whole_layers() as calls:
        forest = sample(engine)
    assert set(calls) == {False}
    check_same(forest, in_parts(engine))
