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
def compiled(monkeypatch):
    """The kernel that CUDA gets, compiled for this processor; fails where it compiles anew."""
    torch._dynamo.reset()
    kernel = torch.compile(torch_flex.flex_attention, dynamic=True)
    monkeypatch.setattr(flex_attention, "_kernel", lambda _device: kernel)
    yield torch._dynamo.utils.counters["stats"]
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (9, None), (None, 2.0)])
def test_the_compiled_kernel_computes_trees_of_all_sizes_without_compiling_again(
    grow_forest, compiled, window, softcap
):
    options = NOTHING | {"sliding_window": window, "softcap": softcap}
    graphs = []
    with torch.no_grad():
        for seed, num_trees in enumerate((2, 9, 16, 5, 30)):
            packed = pack(grow_forest(seed, vocab=9, num_trees=num_trees))
            inputs = states(packed.num_tokens, torch.float32)
            found, expected = (
                context(packed, CPU).attend(torch.nn.Identity(), *inputs, **options)
                for context in (FlexContext, DensePackedContext)
            )
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            graphs.append(compiled["unique_graphs"])
    assert graphs[-1] == graphs[1], graphs


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
