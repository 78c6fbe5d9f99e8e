"""FlexAttention as it runs on CUDA, as far as a CPU can tell: compiled, and with its gradient."""

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from treepo.train import flex_attention
from treepo.train.attention import DensePackedContext
from treepo.train.flex_attention import FlexContext
from treepo.train.pack import pack

CPU = torch.device("cpu")
NOTHING = {"scaling": 0.3, "sliding_window": None, "softcap": None, "sinks": None}


def states(num_tokens, dtype):
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = [(1, heads, num_tokens, 16) for heads in (6, 2, 2)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.fixture
def compile_with(monkeypatch):
    """A function that puts a kernel in place which is compiled for this processor."""

    def compile_with(**options):
        kernel = torch.compile(torch_flex.flex_attention, **options)
        monkeypatch.setattr(flex_attention, "_kernel", lambda _device: kernel)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield compile_with
    torch._dynamo.reset()


def distance(packed, **options):
    """Largest distance between FlexAttention and the dense mask."""
    inputs = states(packed.num_tokens, torch.float32)
    found, expected = (
        context(packed, CPU).attend(torch.nn.Identity(), *inputs, **(NOTHING | options))
        for context in (FlexContext, DensePackedContext)
    )
    return float((found - expected).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 9])
def test_trees_of_other_sizes_do_not_compile_again(grow_forest, compile_with, window):
    # Traced as on CUDA; only the last stage, which makes code for a device, is left out.
    compile_with(dynamic=True, backend="aot_eager")
    graphs = []
    with torch.no_grad():
        for seed, num_trees in enumerate((2, 9, 16, 5, 30)):
            packed = pack(grow_forest(seed, vocab=9, num_trees=num_trees))
            assert distance(packed, sliding_window=window) < 1e-5
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [1, 2, 2, 2, 2]  # A row of a single block is a case of its own.


@pytest.mark.slow
def test_compiled_code_that_skips_blocks_computes_the_dense_mask(grow_forest, compile_with):
    # Of one size: torch's code for CPUs does not build for several.
    compile_with(dynamic=False)
    packed = pack(grow_forest(4, vocab=9, num_trees=30))
    mask = FlexContext(packed, CPU)._mask(None)
    num_blocks = len(mask.kv_num_blocks[0, 0])
    num_read = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    assert num_read < num_blocks * (num_blocks + 1) // 2
    with torch.no_grad():
        assert distance(packed) < 1e-5
        assert distance(packed, sliding_window=9) < 1e-5
        assert distance(packed, softcap=2.0) < 1e-5


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 9])
def test_the_gradient_of_the_kernel_is_that_of_the_dense_mask(
    grow_forest, monkeypatch, window, softcap
):
    # torch refuses it on a CPU, where its eager code computes it nevertheless.
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    packed = pack(grow_forest(3, vocab=9, num_trees=6))
    inputs = [x.requires_grad_() for x in states(packed.num_tokens, torch.float64)]
    options = NOTHING | {"sliding_window": window, "softcap": softcap}
    grads = []
    for context in (FlexContext, DensePackedContext):
        output = context(packed, CPU).attend(torch.nn.Identity(), *inputs, **options)
        weight = torch.arange(output.numel(), dtype=output.dtype).sin().view_as(output)
        grads.append(torch.autograd.grad((output * weight).sum(), inputs))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
