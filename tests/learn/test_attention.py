import numpy as np
import pytest
import torch

from treepo.config import TreeAttention
from treepo.train.attention import DensePackedContext, PackedContext, scaled_attention
from treepo.train.contexts import packed_context
from treepo.train.flex_attention import BLOCK, FlexContext
from treepo.train.pack import pack

CPU = torch.device("cpu")


def states(num_tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, 6, num_tokens, 4), (1, 2, num_tokens, 4), (1, 2, num_tokens, 5)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]


def attended(context, inputs, **options):
    settings = {"scaling": 0.4, "sliding_window": None, "softcap": None, "sinks": None} | options
    output = context.attend(torch.nn.Identity(), *inputs, **settings)
    weight = torch.arange(output.numel(), dtype=torch.float64).sin().view_as(output)
    return output, torch.autograd.grad((output * weight).sum(), inputs)


@pytest.mark.parametrize("window", [None, 1, 3, 7])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("seed", range(3))
def test_chains_equal_the_dense_mask(grow_forest, seed, window, softcap, has_sinks):
    packed = pack(grow_forest(seed, vocab=9))
    inputs = states(packed.num_tokens)
    sinks = torch.linspace(-1, 1, 6, dtype=torch.float64) if has_sinks else None
    options = {"sliding_window": window, "softcap": softcap, "sinks": sinks}
    chain, chain_grads = attended(PackedContext(packed, CPU), inputs, **options)
    dense, dense_grads = attended(DensePackedContext(packed, CPU), inputs, **options)
    torch.testing.assert_close(chain, dense, rtol=0, atol=1e-13)
    for ours, theirs in zip(chain_grads, dense_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def blocks_of(mask):
    """Needed and full blocks of a block mask, bool[Q, K] each."""
    found = []
    for counts, indices in (
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
    ):
        which = torch.zeros(indices.shape[2:], dtype=torch.bool)
        for row, count in enumerate(counts[0, 0].tolist()):
            which[row, indices[0, 0, row, :count].long()] = True
        found.append(which)
    return found[0] | found[1], found[1]


@pytest.mark.parametrize("seed", range(3))
def test_flex_blocks_are_those_that_the_whole_mask_needs(grow_forest, seed, monkeypatch):
    monkeypatch.setattr("treepo.train.flex_attention.BLOCK", 8)
    packed = pack(grow_forest(seed, vocab=9, num_trees=3))
    context = FlexContext(packed, CPU)
    length = context._length
    index = np.arange(length)
    ends = np.append(packed.subtree_end, np.arange(packed.num_tokens, length) + 1)
    whole = (index[None, :] <= index[:, None]) & (index[:, None] < ends[None, :])
    tiles = whole.reshape(length // 8, 8, length // 8, 8)
    needed, full = blocks_of(context._mask(None))
    # A block that lies in a gap between an ancestor's children may be kept, none may be missing.
    assert (needed.numpy() >= tiles.any((1, 3))).all()
    assert needed.sum() <= 1.3 * tiles.any((1, 3)).sum()
    below = np.tril(np.ones(full.shape, dtype=bool), -1)
    np.testing.assert_array_equal(full.numpy(), tiles.all((1, 3)) & below)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True], ids=["plain", "sinks"])
def test_flex_attention_equals_the_dense_mask(grow_forest, window, softcap, has_sinks):
    packed = pack(grow_forest(1, vocab=9, num_trees=4))
    inputs = [x.detach() for x in states(packed.num_tokens)]
    sinks = torch.linspace(-1, 1, 6, dtype=torch.float64) if has_sinks else None
    options = {"scaling": 0.4, "sliding_window": window, "softcap": softcap, "sinks": sinks}
    assert packed.num_tokens % BLOCK
    flex, dense = (
        context(packed, CPU).attend(torch.nn.Identity(), *inputs, **options)
        for context in (FlexContext, DensePackedContext)
    )
    torch.testing.assert_close(flex, dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 4])
def test_a_path_attends_as_it_does_alone(grow_forest, window):
    forest = grow_forest(5, vocab=9)
    packed = pack(forest)
    query, key, value = states(packed.num_tokens)
    context = PackedContext(packed, CPU)
    together, _ = attended(context, (query, key, value), sliding_window=window)
    for path in range(forest.num_paths):
        alone = pack(forest, [path])
        row = np.flatnonzero(np.isin(packed.token_index, alone.token_index))
        part = [x[:, :, row].detach().requires_grad_() for x in (query, key, value)]
        output, _ = attended(DensePackedContext(alone, CPU), part, sliding_window=window)
        torch.testing.assert_close(together[:, row], output, rtol=0, atol=1e-13)


def test_sinks_take_mass_without_a_value():
    query, key, value = states(3)
    mask = torch.ones(3, 3, dtype=torch.bool).tril()
    sinks = torch.linspace(-1, 1, 6, dtype=torch.float64)
    output = scaled_attention(query, key, value, mask, scaling=0.4, softcap=None, sinks=sinks)
    first = torch.sigmoid((query[0, 1, 0] @ key[0, 0, 0]) * 0.4 - sinks[1]) * value[0, 0, 0]
    torch.testing.assert_close(output[0, 1, 0], first)


def test_equal_shapes_share_one_call(grow_forest, monkeypatch):
    forest = grow_forest(2, vocab=9, num_trees=1)
    packed = pack(forest)
    shapes = {
        (int(length), int(packed.positions[start + length - 1]))
        for start, length in zip(packed.spans.start, packed.spans.length, strict=True)
    }
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    attended(PackedContext(packed, CPU), states(packed.num_tokens))
    assert len(calls) == len(shapes)


def test_the_cpu_gets_chains_and_other_devices_the_dense_mask(small_forest):
    packed = pack(small_forest)
    assert isinstance(packed_context(packed, CPU), PackedContext)
    assert isinstance(packed_context(packed, torch.device("meta")), DensePackedContext)
    for kind, expected in (("dense", DensePackedContext), ("flex", FlexContext)):
        assert isinstance(packed_context(packed, CPU, TreeAttention(kind)), expected)
