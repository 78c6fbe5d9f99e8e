"""Law S6: limits, chunks, sharing, preemption and threads change no bit of a forest."""

import numpy as np
import pytest
import torch
from smollm2 import QUESTIONS, load
from storms import differing_values, random_job, random_limits, run_one, run_storms
from tiny_models import MODELS, VOCAB_SIZE

from treepo.config import Dtype, EngineConfig
from treepo.engine import Engine
from treepo.engine.fused import packing
from treepo.engine.kernels import Kernels

HAS_FAST_BFLOAT16 = packing(torch.bfloat16, Kernels()) is not None
DTYPES = [Dtype.FLOAT32, *([Dtype.BFLOAT16] if HAS_FAST_BFLOAT16 else [])]
TINY_PROMPT = 60


def tiny_jobs(rng, num_jobs, num_forests):
    text = rng.integers(0, VOCAB_SIZE, 1000).astype(np.uint32)
    return [
        random_job(rng, text, num_forests=num_forests, max_prompt=TINY_PROMPT)
        for _ in range(num_jobs)
    ]


def tiny_model(family, dtype):
    """A model some of whose completions end early, so that the trees are uneven."""
    # Torch rounds activations differently where a thread's share ends within a vector. The widths
    # of real models divide as these do.
    model = MODELS[family].make(hidden_size=192, intermediate_size=128)
    model = model.to(getattr(torch, dtype.value))
    model.generation_config.eos_token_id = list(range(6))
    return model


def check_storms(tally):
    """No bit differs, and the storms were storms."""
    print(tally)
    for event in ("preemptions", "evictions", "recomputed_tokens", "chunked prefills"):
        assert tally.events[event] > 0, event
    assert not tally.differences, "\n".join([str(tally), *tally.differences[:10]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_storms_change_no_bit(family, dtype):
    rng = np.random.default_rng(11)
    num_jobs = 4 if dtype is Dtype.FLOAT32 else 2
    jobs = tiny_jobs(rng, num_jobs=num_jobs, num_forests=5)
    tally = run_storms(tiny_model(family, dtype), jobs, rng, EngineConfig(dtype=dtype))
    assert tally.forests == 5 * num_jobs
    check_storms(tally)


def test_a_repeated_rollout_is_the_same_to_the_bit():
    rng = np.random.default_rng(12)
    [job] = tiny_jobs(rng, num_jobs=1, num_forests=1)
    engine = Engine(tiny_model("llama", Dtype.FLOAT32), None, EngineConfig(block_size=4))
    first, again = (run_one(engine, job, 0) for _ in range(2))
    assert differing_values(again.columns(), first.columns()) == {}


def test_a_model_that_rounds_differently_in_large_steps_is_noticed():
    rng = np.random.default_rng(13)
    [job] = tiny_jobs(rng, num_jobs=1, num_forests=1)
    model = tiny_model("llama", Dtype.FLOAT32)
    engine = Engine(model, None, EngineConfig(block_size=4))
    expected = run_one(engine, job, 0)

    def one_bit_up(module, args, hidden):
        is_large = hidden.shape[1] > 4
        return torch.nextafter(hidden, torch.tensor(torch.inf)) if is_large else hidden

    model.model.norm.register_forward_hook(one_bit_up)
    actual = run_one(engine, job, 0)
    assert differing_values(actual.columns(), expected.columns())["token_logprob"] > 0


def test_one_bit_of_one_value_is_noticed():
    rng = np.random.default_rng(14)
    [job] = tiny_jobs(rng, num_jobs=1, num_forests=1)
    forest = run_one(Engine(tiny_model("llama", Dtype.FLOAT32), None), job, 0)
    for name in ("token_logprob", "token_entropy", "token_id"):
        column = forest.columns()[name].copy()
        column.view(np.uint32)[-1] ^= 1
        changed = forest.columns() | {name: column}
        assert differing_values(changed, forest.columns()) == {name: 1}


def test_random_limits_reach_from_one_path_to_ample_memory():
    rng = np.random.default_rng(15)
    drawn = [random_limits(rng, longest_path=70, ample_tokens=900) for _ in range(300)]
    tokens = [(config.num_blocks - 1) * config.block_size for config in drawn]
    assert min(tokens) == 70
    assert max(tokens) >= 900
    assert {config.max_num_seqs for config in drawn} >= {1, 32}
    assert {config.max_num_batched_tokens for config in drawn} >= {8, 2048}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", DTYPES)
def test_storms_change_no_bit_of_smollm2(dtype):
    model, tokenizer = load(dtype)
    text = np.array(tokenizer.encode(" ".join(QUESTIONS)), np.uint32)
    # Words and signs that are common in text, so that some completions end early.
    ends = [tokenizer.encode(text)[-1] for text in (".", ",", "\n", " the")]
    model.generation_config.eos_token_id = ends
    rng = np.random.default_rng(21)
    jobs = [random_job(rng, text, num_forests=10, max_prompt=100) for _ in range(20)]
    tally = run_storms(model, jobs, rng, EngineConfig(dtype=dtype))
    assert tally.forests == 200
    check_storms(tally)
