"""The sampler draws in proportion to the distribution that it reports."""

import subprocess
import sys

import pytest
import torch

from treepo.config import SamplingParams
from treepo.engine.kernels import Kernels
from treepo.engine.native_sampler import draw
from treepo.engine.sampler import sample
from treepo.errors import InvalidInputError, NotFiniteError

PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.6),
    SamplingParams(top_k=5),
    SamplingParams(top_p=0.7),
    SamplingParams(temperature=2.0, top_k=50, top_p=0.9),
    SamplingParams(min_p=0.1),
    SamplingParams(temperature=1.5, top_k=50, top_p=0.9, min_p=0.2),
]
GRID = 4000


def reference(logits, params):
    """The distribution by definition, in fp64: [vocab_size]."""
    p = torch.softmax(logits.double() / params.temperature, -1)
    if params.top_k:
        p = torch.where(p >= p.topk(min(params.top_k, len(p))).values[-1], p, 0.0)
        p /= p.sum()
    order = p.argsort(descending=True)
    before = p[order].cumsum(0) - p[order]
    p[order[before >= params.top_p]] = 0.0
    p[p < params.min_p * p.max()] = 0.0
    return p / p.sum()


@pytest.mark.parametrize("vocab_size", [2, 18, 256, 1000, 3001])
@pytest.mark.parametrize("params", PARAMS)
def test_an_even_grid_of_uniforms_gives_the_distribution(vocab_size, params):
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 2
    uniforms = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    draws = sample(logits.expand(GRID, -1), uniforms, params)
    frequency = torch.bincount(draws.token_ids, minlength=vocab_size).double() / GRID
    # An interval of length p holds p * GRID grid points, give or take one.
    assert (frequency - reference(logits, params)).abs().max() <= 1.01 / GRID


@pytest.mark.parametrize("params", PARAMS)
def test_logprob_and_entropy_are_those_of_the_distribution(params):
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    draws = sample(logits, uniforms, params)
    for row in range(64):
        chosen = reference(logits[row], params)[draws.token_ids[row]]
        assert draws.logprobs[row] == pytest.approx(float(chosen.log()), abs=1e-5)
    full = torch.distributions.Categorical(logits=logits.double() / params.temperature).entropy()
    torch.testing.assert_close(draws.entropies.double(), full, atol=1e-5, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 5e-324, 1 - 2**-53, 1.0])
@pytest.mark.parametrize("vocab_size", [8, 1000])
@pytest.mark.parametrize("only", [0, 3, 7])
def test_extreme_uniforms_never_draw_a_token_of_probability_0(uniform, vocab_size, only):
    logits = torch.full((1, vocab_size), -200.0)
    logits[0, only] = 0.0
    draws = sample(logits, torch.tensor([uniform], dtype=torch.float64), SamplingParams())
    assert draws.token_ids.tolist() == [only]
    assert draws.logprobs.tolist() == [0.0]


@pytest.mark.parametrize(
    "params", [SamplingParams(top_k=3), SamplingParams(top_p=0.5), SamplingParams(min_p=0.9)]
)
@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_extreme_uniforms_never_draw_a_token_that_is_cut_off(params, uniform):
    logits = torch.linspace(0.0, 3.0, 600)[None]
    draws = sample(logits, torch.tensor([uniform], dtype=torch.float64), params)
    assert reference(logits[0], params)[draws.token_ids[0]] > 0


def test_a_min_p_of_1_leaves_the_most_likely_tokens():
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0]]).expand(8, -1)
    uniforms = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    draws = sample(logits, uniforms, SamplingParams(min_p=1.0))
    assert draws.token_ids.tolist() == [1, 1, 1, 1, 3, 3, 3, 3]


def test_a_row_is_drawn_alike_in_every_batch():
    logits = torch.randn(16, 700, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = sample(logits, uniforms, SamplingParams())
    for row in range(16):
        alone = sample(logits[row : row + 1], uniforms[row : row + 1], SamplingParams())
        assert alone.token_ids[0] == together.token_ids[row]


def test_a_large_step_is_drawn_like_its_rows():
    logits = torch.randn(40, 50_000, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = sample(logits, uniforms, SamplingParams())
    for row in (0, 9, 10, 39):
        alone = sample(logits[row : row + 1], uniforms[row : row + 1], SamplingParams())
        assert [x[0] for x in alone] == [x[row] for x in together]


def test_a_bad_row_deep_in_a_large_step_is_named():
    logits = torch.zeros(40, 50_000)
    logits[33, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="row 33"):
        sample(logits, torch.full((40,), 0.5, dtype=torch.float64), SamplingParams())


@pytest.mark.parametrize("params", [*PARAMS, SamplingParams(temperature=0.0)])
def test_a_step_without_samples_draws_nothing(params):
    draws = sample(torch.zeros(0, 600), torch.zeros(0, dtype=torch.float64), params)
    assert [len(column) for column in draws] == [0, 0, 0]


def test_greedy_takes_the_most_likely_token_and_reports_temperature_1():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 0.0]])
    draws = sample(logits, torch.zeros(2, dtype=torch.float64), SamplingParams(temperature=0.0))
    assert draws.token_ids.tolist() == [1, 0]
    expected = logits.log_softmax(-1)[torch.arange(2), torch.tensor([1, 0])]
    torch.testing.assert_close(draws.logprobs, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_a_logit_that_is_not_finite_is_refused_and_its_row_named(bad, temperature):
    logits = torch.zeros(4, 600)
    logits[2, 599] = bad
    uniforms = torch.full((4,), 0.5, dtype=torch.float64)
    with pytest.raises(NotFiniteError, match="row 2"):
        sample(logits, uniforms, SamplingParams(temperature=temperature))


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_draws_than_of_rows_is_refused(count):
    uniforms = torch.full((count,), 0.5, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match=f"{count} draws from 3 rows"):
        draw(Kernels(1), torch.zeros(3, 8), None, uniforms, SamplingParams())


FLUSHING = """
import numpy as np, torch
from treepo import core

torch.set_flush_denormal(True)
for level in core.Kernels.levels():
    for size, top_k in [(8, 0), (600, 0), (600, 5)]:
        logits = np.zeros((2, size), np.float32)
        logits[:, 3] = 20.0
        ids, results = np.empty(2, np.uint32), np.empty((2, 2), np.float32)
        core.Kernels(1, level=level).sample(
            core.Element.F32, (logits.ctypes.data, 2, size, size), None, np.array([0.0, 0.999]),
            (1.0, top_k, 0.5, 0.0), ids, results[0], results[1],
        )
        assert ids.tolist() == [3, 3] and results[0].tolist() == [0.0, 0.0], (level, size, top_k)
"""


def test_top_p_ends_where_numbers_too_small_to_be_normal_are_read_as_0():
    subprocess.run([sys.executable, "-c", FLUSHING], check=True, timeout=60)
