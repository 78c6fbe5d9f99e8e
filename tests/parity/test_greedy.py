"""Greedy sampling equals transformers' own `generate`, token for token, in fp32."""

import numpy as np
import pytest
import torch

from treepo.config import EngineConfig, SamplingParams, SearchConfig
from treepo.engine import Engine, plain_attention

GREEDY = SamplingParams(temperature=0.0)
NUM_NEW = 24
FAMILIES = ["llama", "qwen2", "gemma2", "gpt_oss"]


def expected_completions(model, prompts):
    """What transformers generates, one prompt at a time."""
    with plain_attention(model), torch.no_grad():
        return [
            model.generate(
                torch.from_numpy(prompt.astype(np.int64))[None],
                max_new_tokens=NUM_NEW,
                do_sample=False,
            )[0, len(prompt) :].tolist()
            for prompt in prompts
        ]


def completions(forest):
    return [forest.completion_ids(path).tolist() for path in range(forest.num_paths)]


@pytest.fixture
def recorded_logits(monkeypatch):
    """Every logits row that the engine samples from, in order."""
    rows = []
    module = __import__("treepo.engine.engine", fromlist=["sample"])
    original = module.sample

    def record(logits, uniforms, params):
        rows.append(logits.clone())
        return original(logits, uniforms, params)

    monkeypatch.setattr(module, "sample", record)
    return rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block_size", [1, 16])
def test_mixed_batches_continue_prompts_like_generate(make_model, prompts, family, block_size):
    model = make_model(family)
    # 13 tokens a step: the longer prompts arrive in chunks beside rows that decode.
    config = EngineConfig(block_size=block_size, max_num_batched_tokens=13, max_num_seqs=4)
    forest = Engine(model, None, config).generate(prompts, max_tokens=NUM_NEW, sampling=GREEDY)
    assert completions(forest) == expected_completions(model, prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_completions_compared_are_not_a_loop(make_model, prompts, family):
    for completion in expected_completions(make_model(family), prompts):
        assert len(set(completion)) >= 8


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("block_size", [1, 4])
def test_preempted_paths_continue_like_generate(make_model, prompts, family, block_size):
    model = make_model(family)
    # The pool holds the longest path and little more, so the four cannot all stay.
    num_blocks = 1 + 80 // block_size
    config = EngineConfig(block_size=block_size, num_blocks=num_blocks, max_num_batched_tokens=32)
    engine = Engine(model, None, config)
    forest = engine.generate(prompts, max_tokens=NUM_NEW, sampling=GREEDY)
    assert engine.stats.preemptions > 0
    assert completions(forest) == expected_completions(model, prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_a_plain_forward(make_model, prompts, family, recorded_logits):
    model = make_model(family)
    config = EngineConfig(block_size=4, max_num_batched_tokens=13)
    forest = Engine(model, None, config).generate(prompts, max_tokens=NUM_NEW, sampling=GREEDY)
    actual = torch.cat(recorded_logits)
    expected = []
    with plain_attention(model), torch.no_grad():
        for path, prompt in enumerate(prompts):
            token_ids = torch.from_numpy(forest.token_ids(path).astype(np.int64))
            expected.append(model(token_ids[None]).logits[0, len(prompt) - 1 : -1])
    expected = torch.cat(expected)
    assert actual.shape == expected.shape
    # Rows come in the order of the schedule: each has to equal its own, the nearest.
    error = torch.cdist(actual, expected, p=float("inf")).min(dim=1)
    assert len(set(error.indices.tolist())) == len(expected)
    assert error.values.max() <= 2e-4 * expected.abs().max()


def test_every_leaf_of_a_greedy_tree_is_the_greedy_completion(make_model, prompts):
    model = make_model("llama")
    search = SearchConfig(width=6, segment_len=6, max_depth=4, initial_divergence=2)
    config = EngineConfig(block_size=4, max_num_batched_tokens=13)
    forest = Engine(model, None, config).rollout(prompts, search, GREEDY)
    expected = expected_completions(model, prompts)
    for path in range(forest.num_paths):
        assert forest.completion_ids(path).tolist() == expected[forest.paths.tree[path]]


def test_a_sampled_tree_does_not_depend_on_pool_or_batch(make_model, prompts):
    model = make_model("llama")
    search = SearchConfig(width=6, segment_len=5, max_depth=4)
    wide = Engine(model, None, EngineConfig(block_size=16))
    narrow = Engine(
        model,
        None,
        EngineConfig(block_size=4, num_blocks=24, max_num_batched_tokens=11, max_num_seqs=3),
    )
    first, second = (engine.rollout(prompts, search, seed=3) for engine in (wide, narrow))
    assert narrow.stats.preemptions + narrow.stats.evictions > 0
    assert [first.token_ids(p).tolist() for p in range(first.num_paths)] == [
        second.token_ids(p).tolist() for p in range(second.num_paths)
    ]
