"""The recorded log-probability is that of the distribution the token was sampled from."""

import numpy as np
import pytest
import torch
from tiny_models import MODELS
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from treepo.config import SamplingParams, SearchConfig
from treepo.engine import Engine, plain_attention
from treepo.forest import TokenKind

SEARCH = SearchConfig(width=4, segment_len=5, max_depth=3)


def plain_logits(model, token_ids):
    """Logits of a whole path, in fp64 precision from an fp32 forward: [length, vocab_size]."""
    with plain_attention(model), torch.no_grad():
        return (
            model(torch.from_numpy(token_ids.astype(np.int64))[None], use_cache=False)
            .logits[0]
            .double()
        )


def warped_logprobs(logits, params):
    """Log-probabilities after transformers' own temperature, top-k and top-p."""
    if params.temperature != 1:
        logits = TemperatureLogitsWarper(params.temperature)(None, logits)
    if params.top_k:
        logits = TopKLogitsWarper(params.top_k)(None, logits)
    if params.top_p < 1:
        logits = TopPLogitsWarper(params.top_p)(None, logits)
    return logits.log_softmax(-1)


def check_logprobs(model, config, prompts, params):
    """Each sampled token's log-probability against a plain forward of each whole path."""
    forest = Engine(model, None, config).rollout(prompts, SEARCH, params, seed=1)
    for path in range(forest.num_paths):
        token_ids = forest.token_ids(path)
        index = forest.token_index(path)
        sampled = np.flatnonzero(forest.tokens.kind[index] == TokenKind.SAMPLED)
        logits = plain_logits(model, token_ids)[sampled - 1]
        expected = warped_logprobs(logits, params)[
            torch.arange(len(sampled)), token_ids[sampled].astype(np.int64)
        ]
        np.testing.assert_allclose(forest.tokens.logprob[index[sampled]], expected, atol=1e-4)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_recorded_logprob_equals_a_plain_forward(
    make_model, make_config, prompts, family, temperature
):
    # 24 tokens a step: some prompts arrive in chunks beside rows that decode.
    config = make_config(block_size=4, max_num_batched_tokens=24)
    params = SamplingParams(temperature=temperature)
    check_logprobs(make_model(family), config, prompts, params)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.6, top_k=5),
        SamplingParams(top_p=0.8),
        SamplingParams(temperature=1.3, top_k=20, top_p=0.9),
    ],
)
def test_recorded_logprob_is_of_the_tokens_that_may_be_drawn(
    make_model, make_config, prompts, family, params
):
    config = make_config(block_size=4, max_num_batched_tokens=24)
    check_logprobs(make_model(family), config, prompts, params)


def test_recorded_entropy_is_of_the_full_vocabulary_at_the_sampling_temperature(
    make_model, make_config, prompts
):
    model = make_model("llama")
    params = SamplingParams(temperature=0.6, top_k=5)
    forest = Engine(model, None, make_config()).rollout(prompts, SEARCH, params, seed=1)
    index = forest.token_index(0)
    sampled = np.flatnonzero(forest.tokens.kind[index] == TokenKind.SAMPLED)
    logits = plain_logits(model, forest.token_ids(0))[sampled - 1] / 0.6
    expected = torch.distributions.Categorical(logits=logits).entropy()
    np.testing.assert_allclose(forest.tokens.entropy[index[sampled]], expected, atol=1e-4)


def test_greedy_records_the_logprob_at_temperature_1(make_model, make_config, prompts):
    model = make_model("llama")
    params = SamplingParams(temperature=0.0)
    forest = Engine(model, None, make_config()).generate(prompts[:1], max_tokens=8, sampling=params)
    token_ids = forest.token_ids(0)
    logprobs = plain_logits(model, token_ids)[:-1].log_softmax(-1)
    expected = logprobs[torch.arange(8), token_ids[1:].astype(np.int64)]
    np.testing.assert_allclose(forest.tokens.logprob[1:], expected, atol=1e-4)
