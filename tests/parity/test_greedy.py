"""Greedy sampling equals plain Hugging Face, token for token and logit for logit, in fp32.

The oracle is the whole sequence through transformers' own eager attention for every token, without
a cache.
"""

import numpy as np
import pytest
import torch
from tiny_models import MODELS

from treepo.config import SamplingParams, SearchConfig
from treepo.engine import Engine, plain_attention

GREEDY = SamplingParams(temperature=0.0)
NUM_NEW = 24


def plain_logits(model, token_ids):
    """Logits of a whole sequence: [length, vocab_size]."""
    with plain_attention(model), torch.no_grad():
        ids = torch.from_numpy(token_ids.astype(np.int64))[None]
        return model(ids, use_cache=False).logits[0]


def greedy_completion(model, prompt):
    token_ids = prompt
    for _ in range(NUM_NEW):
        token = int(plain_logits(model, token_ids)[-1].argmax())
        token_ids = np.append(token_ids, np.uint32(token))
    return token_ids[len(prompt) :].tolist()


def completions(forest):
    return [forest.completion_ids(path).tolist() for path in range(forest.num_paths)]


@pytest.fixture(scope="module")
def expected_completions():
    """A function that gives a family's greedy completions, each family's worked out once."""
    known = {}

    def expected(family, prompts):
        if family not in known:
            model = MODELS[family].make()
            known[family] = [greedy_completion(model, prompt) for prompt in prompts]
        return known[family]

    return expected


@pytest.fixture
def record_logits():
    """A function that collects every logits row that a model computes, in order."""

    def record(model):
        rows = []
        model.register_forward_hook(lambda *call: rows.append(call[-1].logits[0].clone()))
        return rows

    return record


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("block_size", [1, 16])
def test_mixed_batches_continue_prompts_like_a_plain_forward(
    make_model, make_config, prompts, expected_completions, family, block_size
):
    # 13 tokens a step: the longer prompts arrive in chunks beside rows that decode.
    config = make_config(block_size=block_size, max_num_batched_tokens=13, max_num_seqs=4)
    engine = Engine(make_model(family), None, config)
    forest = engine.generate(prompts, max_tokens=NUM_NEW, sampling=GREEDY)
    assert completions(forest) == expected_completions(family, prompts)


@pytest.mark.parametrize("family", MODELS)
def test_the_completions_compared_are_not_a_loop(expected_completions, prompts, family):
    for completion in expected_completions(family, prompts):
        assert len(set(completion)) >= 8


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("block_size", [1, 16])
def test_preempted_paths_continue_like_a_plain_forward(
    make_model, make_config, prompts, expected_completions, family, block_size
):
    # The pool holds the longest path and little more, so the four cannot all stay.
    num_blocks = 1 + 80 // block_size
    config = make_config(block_size=block_size, num_blocks=num_blocks, max_num_batched_tokens=32)
    engine = Engine(make_model(family), None, config)
    forest = engine.generate(prompts, max_tokens=NUM_NEW, sampling=GREEDY)
    assert engine.stats.preemptions > 0
    assert completions(forest) == expected_completions(family, prompts)


@pytest.mark.parametrize("family", MODELS)
def test_logits_equal_a_plain_forward(make_model, make_config, prompts, record_logits, family):
    model = make_model(family)
    engine = Engine(model, None, make_config(block_size=4, max_num_batched_tokens=13))
    rows = record_logits(model)
    forest = engine.generate(prompts, max_tokens=NUM_NEW, sampling=GREEDY)
    actual = torch.cat(rows)
    expected = torch.cat(
        [
            plain_logits(model, forest.token_ids(path))[len(prompt) - 1 : -1]
            for path, prompt in enumerate(prompts)
        ]
    )
    assert actual.shape == expected.shape
    # Rows come in the order of the schedule: each has to equal its own, the nearest.
    error = torch.cdist(actual, expected, p=float("inf")).min(dim=1)
    assert len(set(error.indices.tolist())) == len(expected)
    assert error.values.max() <= 2e-4 * expected.abs().max()


def test_every_leaf_of_a_greedy_tree_is_the_greedy_completion(
    make_model, make_config, prompts, expected_completions
):
    search = SearchConfig(width=6, segment_len=6, max_depth=4, initial_divergence=2)
    config = make_config(block_size=4, max_num_batched_tokens=13)
    forest = Engine(make_model("llama"), None, config).rollout(prompts, search, GREEDY)
    expected = expected_completions("llama", prompts)
    for path in range(forest.num_paths):
        assert forest.completion_ids(path).tolist() == expected[forest.paths.tree[path]]


def test_a_sampled_tree_does_not_depend_on_pool_or_batch(make_model, make_config, prompts):
    model = make_model("llama")
    search = SearchConfig(width=6, segment_len=5, max_depth=4)
    wide = Engine(model, None, make_config(block_size=16))
    narrow = Engine(
        model,
        None,
        make_config(block_size=4, num_blocks=24, max_num_batched_tokens=11, max_num_seqs=3),
    )
    first, second = (engine.rollout(prompts, search, seed=3) for engine in (wide, narrow))
    assert narrow.stats.preemptions + narrow.stats.evictions > 0
    assert [first.token_ids(p).tolist() for p in range(first.num_paths)] == [
        second.token_ids(p).tolist() for p in range(second.num_paths)
    ]
