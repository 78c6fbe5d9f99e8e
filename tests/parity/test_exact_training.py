"""Law L2: at the weights that sampled them, training gives tokens the bits of their log-probs."""

import numpy as np
import pytest
import torch
from smollm2 import QUESTIONS, load
from tiny_models import MODELS, VOCAB_SIZE

from treepo.config import (
    Attention,
    Dtype,
    EngineConfig,
    LossConfig,
    OptimizerConfig,
    Packing,
    SamplingParams,
    SearchConfig,
)
from treepo.engine import Engine, plain_attention
from treepo.engine.fused import packing
from treepo.engine.kernels import Kernels
from treepo.forest import TokenKind
from treepo.train import optimizer
from treepo.train.head import MAX_CHUNK_LOGITS
from treepo.train.pack import pack
from treepo.train.step import TrainStep

SEARCH = SearchConfig(width=6, segment_len=9, max_depth=5)
TEMPERATURE = 0.8
HAS_FAST_BFLOAT16 = packing(torch.bfloat16, Kernels()) is not None
DTYPES = [torch.float32, *([torch.bfloat16] if HAS_FAST_BFLOAT16 else [])]
# Torch's product of a group of experts rounds by the number of rows in float32.
GROUPED_EXPERTS = {"mixtral", "qwen3_moe"}


def even_prompts():
    rng = np.random.default_rng(4)
    return [rng.integers(0, VOCAB_SIZE, n).astype(np.uint32) for n in (1, 20, 33)]


def sample(engine, prompts, search=SEARCH):
    return engine.rollout(prompts, search, SamplingParams(temperature=TEMPERATURE), seed=3)


def exact_step(engine):
    assert engine.exact_forward is not None
    return TrainStep(engine.model, LossConfig(), TEMPERATURE, exact=engine.exact_forward)


def make(family, dtype=torch.float32):
    """A model whose widths divide as those of real models do (see test_bits)."""
    return MODELS[family].make(hidden_size=192, intermediate_size=128).to(dtype)


def recorded_and_trained(engine, forest):
    """Log-probs and entropies, [2, num_tokens] each, as sampled and as in training."""
    packed = pack(forest)
    logprob, entropy = exact_step(engine).logprobs(packed)
    assert logprob.requires_grad
    trained = np.stack([logprob.detach().float().numpy(), entropy.detach().float().numpy()])
    return np.stack([packed.old_logprob, packed.entropy]), trained


def gradients(model, step, packed):
    """Gradients of a loss with advantages of both signs, by parameter."""
    model.zero_grad()
    values = np.random.default_rng(0).normal(size=packed.src_path.max() + 1)
    step.backward(packed, values, packed.num_trajectory_tokens)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", sorted(MODELS))
def test_training_repeats_the_bits_of_sampling(family, dtype):
    engine = Engine(make(family, dtype), None, EngineConfig(block_size=4))
    recorded, trained = recorded_and_trained(engine, sample(engine, even_prompts()))
    assert recorded.shape[1] > 500
    if family in GROUPED_EXPERTS and dtype is torch.float32:
        np.testing.assert_allclose(trained, recorded, atol=1e-4)
    else:
        np.testing.assert_array_equal(trained, recorded)


def test_weights_that_changed_are_trained_with_and_move_the_log_probs():
    engine = Engine(make("llama"), None)
    forest = sample(engine, even_prompts())
    with torch.no_grad():
        engine.model.lm_head.weight.mul_(1.5)
    recorded, trained = recorded_and_trained(engine, forest)
    assert abs(trained - recorded).max() > 0.01
    expected, _ = TrainStep(engine.model, LossConfig(), TEMPERATURE).logprobs(pack(forest))
    np.testing.assert_allclose(trained[0], expected.detach(), atol=1e-3)


def test_the_weights_of_an_optimizer_step_are_trained_with():
    engine = Engine(make("llama"), None, EngineConfig(block_size=4))
    packed = pack(sample(engine, even_prompts()))
    step = exact_step(engine)
    adamw = optimizer.build(engine.model, OptimizerConfig())
    gradients(engine.model, step, packed)
    optimizer.apply(adamw, learning_rate=1e-2, grad_clip=1.0)
    found = step.logprobs(packed)[0].detach()
    expected = TrainStep(engine.model, LossConfig(), TEMPERATURE).logprobs(packed)[0].detach()
    assert (expected - torch.from_numpy(packed.old_logprob)).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", sorted(MODELS))
def test_gradients_are_those_of_torch(family):
    engine = Engine(make(family), None, EngineConfig(block_size=4))
    packed = pack(sample(engine, even_prompts()))
    expected = gradients(engine.model, TrainStep(engine.model, LossConfig(), TEMPERATURE), packed)
    actual = gradients(engine.model, exact_step(engine), packed)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert float((actual[name] - gradient).abs().max()) <= 1e-2 * scale, name


def test_gradient_checkpointing_changes_no_gradient():
    engine = Engine(make("llama"), None)
    packed = pack(sample(engine, even_prompts()))
    expected = gradients(engine.model, exact_step(engine), packed)
    engine.model.gradient_checkpointing_enable()
    engine.model.train()
    actual = gradients(engine.model, exact_step(engine), packed)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, msg=name)


def test_a_head_in_chunks_gives_the_same_bits(monkeypatch):
    engine = Engine(make("gemma2"), None)
    forest = sample(engine, even_prompts())
    # 13 rows a chunk: the last chunk is one of few rows.
    monkeypatch.setattr("treepo.train.head.MAX_CHUNK_LOGITS", 13 * VOCAB_SIZE)
    recorded, trained = recorded_and_trained(engine, forest)
    np.testing.assert_array_equal(trained, recorded)


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(attention=Attention.TORCH),
        EngineConfig(packing=Packing.NEVER),
        EngineConfig(kv_dtype=Dtype.BFLOAT16),
    ],
)
def test_other_sampling_has_no_exact_forward(config):
    assert Engine(make("llama"), None, config).exact_forward is None


def test_training_leaves_the_model_as_it_was():
    engine = Engine(make("llama"), None)
    before = {name: module.forward for name, module in engine.model.named_modules()}
    gradients(engine.model, exact_step(engine), pack(sample(engine, even_prompts())))
    assert {name: module.forward for name, module in engine.model.named_modules()} == before


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.BFLOAT16][: len(DTYPES)])
def test_smollm2_is_trained_at_ratio_exactly_1(dtype):
    torch.set_num_threads(2)
    model, tokenizer = load(dtype)
    engine = Engine(model, tokenizer)
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS[:4]]
    search = SearchConfig(width=8, segment_len=16, max_depth=4)
    packed = pack(sample(engine, prompts, search))
    step = exact_step(engine)
    metrics = step.backward(
        packed, np.ones(packed.src_path.max() + 1), packed.num_trajectory_tokens
    )
    assert packed.num_sampled_tokens > 500
    assert (metrics.ratio_min, metrics.ratio_max, metrics.abs_log_ratio) == (1.0, 1.0, 0.0)


@pytest.mark.slow
def test_the_gradient_of_smollm2_is_that_of_its_trajectories():
    """Its head has several chunks, whose probabilities are computed again in the backward pass."""
    torch.set_num_threads(2)
    model, tokenizer = load()
    engine = Engine(model, tokenizer)
    prompts = [[{"role": "user", "content": QUESTIONS[1]}]]
    forest = sample(engine, prompts, SearchConfig(width=8, segment_len=32, max_depth=6))
    packed = pack(forest)
    assert packed.num_sampled_tokens * model.config.vocab_size > 2 * MAX_CHUNK_LOGITS
    advantages = np.random.default_rng(0).normal(size=forest.num_paths)
    exact_step(engine).backward(packed, advantages, packed.num_trajectory_tokens)
    actual = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()
    for path in range(forest.num_paths):
        ids = torch.from_numpy(forest.token_ids(path).astype(np.int64))
        kind = torch.from_numpy(np.asarray(forest.tokens.kind)[forest.token_index(path)])
        with plain_attention(model):
            logits = model(ids[None], use_cache=False).logits[0, :-1] / TEMPERATURE
        # Of so many float32 logits torch's log_softmax is off by 3e-5.
        logprob = logits.double().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        sampled = logprob[kind[1:] == TokenKind.SAMPLED]
        (-advantages[path] * sampled.sum() / packed.num_trajectory_tokens).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert float((actual - expected).norm() / expected.norm()) < 1e-5
