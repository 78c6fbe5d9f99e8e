"""SmolLM2-135M-Instruct on natural prompts."""

import numpy as np
import pytest
import torch
from smollm2 import QUESTIONS, load

from treepo.config import EngineConfig, SamplingParams, SearchConfig
from treepo.engine import Engine, plain_attention
from treepo.forest import TokenKind

NUM_NEW = 32

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine():
    config = EngineConfig(max_num_batched_tokens=96, max_model_len=256, max_num_seqs=16)
    return Engine(*load(), config)


@pytest.fixture(scope="module")
def chats():
    return [[{"role": "user", "content": question}] for question in QUESTIONS]


def plain_logits(engine, token_ids):
    with plain_attention(engine.model), torch.no_grad():
        return engine.model(torch.from_numpy(token_ids.astype(np.int64))[None]).logits[0]


def test_greedy_equals_generate_on_natural_prompts(engine, chats):
    greedy = SamplingParams(temperature=0.0)
    forest = engine.generate(chats, max_tokens=NUM_NEW, sampling=greedy)
    for path in range(len(chats)):
        completion = forest.completion_ids(path).tolist()
        prompt_len = forest.trees.prompt_len[path]
        prompt = torch.from_numpy(forest.token_ids(path)[:prompt_len].astype(np.int64))
        with plain_attention(engine.model), torch.no_grad():
            expected = engine.model.generate(prompt[None], max_new_tokens=NUM_NEW, do_sample=False)
        assert completion == expected[0, prompt_len:].tolist(), QUESTIONS[path]
    distinct = [len(set(forest.completion_ids(path).tolist())) for path in range(len(chats))]
    assert min(distinct) >= 8


def test_four_trees_of_eight_leaves_record_the_logprobs_of_a_plain_forward(engine, chats):
    params = SamplingParams(temperature=0.6)
    search = SearchConfig(width=8, segment_len=8, max_depth=4)
    forest = engine.rollout(chats[:4], search, params, seed=0)
    assert np.diff(forest.trees.path_start).tolist() == [8] * 4
    for path in range(0, forest.num_paths, 5):
        token_ids, index = forest.token_ids(path), forest.token_index(path)
        sampled = np.flatnonzero(forest.tokens.kind[index] == TokenKind.SAMPLED)
        logprobs = (plain_logits(engine, token_ids)[sampled - 1] / 0.6).log_softmax(-1)
        expected = logprobs[torch.arange(len(sampled)), token_ids[sampled].astype(np.int64)]
        np.testing.assert_allclose(forest.tokens.logprob[index[sampled]], expected, atol=1e-3)
