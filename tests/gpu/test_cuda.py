"""The torch back end on a CUDA device: the same greedy tokens, the same tree gradient as on CPU."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from treepo import Engine, EngineConfig, SamplingParams, SearchConfig
from treepo.config import LossConfig
from treepo.tasks import embedded
from treepo.train.pack import pack
from treepo.train.step import TrainStep

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(embedded.MODEL_PATH)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded.MODEL_PATH)


def engine_on(device, model, tokenizer):
    return Engine(copy.deepcopy(model).to(device), tokenizer, EngineConfig(device=device))


def prompts(count):
    return [row["prompt"] for row in embedded.heldout_examples(count)]


def test_greedy_tokens_on_cuda_are_those_of_the_cpu(model, tokenizer):
    greedy = SamplingParams(temperature=0.0)
    cpu, cuda = (
        engine_on(device, model, tokenizer).generate(prompts(8), 1, 60, greedy)
        for device in ("cpu", "cuda")
    )
    for path in range(8):
        assert cuda.token_ids(path).tolist() == cpu.token_ids(path).tolist()


def test_a_small_pool_on_cuda_preempts_and_changes_nothing(model, tokenizer):
    search = SearchConfig(width=8, segment_len=9, max_depth=7)
    greedy = SamplingParams(temperature=0.0)
    large = engine_on("cuda", model, tokenizer)
    small = engine_on("cuda", model, tokenizer)
    small.config = EngineConfig(device="cuda", num_blocks=24)
    expected, forest = (e.rollout(prompts(4), search, greedy) for e in (large, small))
    assert small.stats.preemptions > 0
    np.testing.assert_array_equal(forest.tokens.id, expected.tokens.id)


def test_the_tree_gradient_on_cuda_is_that_of_the_cpu(model, tokenizer):
    search = SearchConfig(width=8, segment_len=9, max_depth=7)
    forest = engine_on("cpu", model, tokenizer).rollout(prompts(2), search)
    packed = pack(forest)
    values = np.random.default_rng(0).normal(size=forest.num_paths)
    gradients = []
    for device in ("cpu", "cuda"):
        copied = copy.deepcopy(model).to(device)
        step = TrainStep(copied, LossConfig(), 1.0)
        step.backward(packed, values, packed.num_trajectory_tokens)
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in copied.parameters()]))
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert difference < 1e-4
