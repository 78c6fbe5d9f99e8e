"""The KV pool stores, copies and sizes as it says."""

import sys

import pytest
import torch

from treepo.config import EngineConfig
from treepo.engine import memory
from treepo.engine.hook import KVShapes, LayerShape
from treepo.engine.kv import KVPool, _free_of_container, choose_num_blocks, free_bytes

LAYER = LayerShape(
    num_heads=4,
    num_kv_heads=2,
    key_dim=3,
    value_dim=5,
    sliding_window=None,
    softcap=None,
    has_sinks=False,
)
SHAPES = KVShapes(layers=(LAYER, LAYER), dtype=torch.float32)
CPU = torch.device("cpu")


@pytest.fixture
def pool():
    return KVPool(SHAPES, num_blocks=6, block_size=4, device=CPU)


def test_a_written_token_is_read_at_its_slot(pool):
    key, value = torch.randn(2, 3, 3), torch.randn(2, 3, 5)
    pool.write(1, torch.tensor([4, 23, 9]), key, value)
    keys, values = pool.layer(1)
    for token, (block, offset) in enumerate([(1, 0), (5, 3), (2, 1)]):
        assert torch.equal(keys[block, offset], key[:, token])
        assert torch.equal(values[block, offset], value[:, token])
    assert pool.layer(0)[0].count_nonzero() == 0


def test_copies_read_every_source_before_they_write(pool):
    for tensor in (*pool.layer(0), *pool.layer(1)):
        tensor.copy_(torch.arange(6.0).view(6, 1, 1, 1).expand_as(tensor))
    # A chain and a swap: in sequence, block 3 would receive what block 2 has just received.
    pool.copy_blocks(torch.tensor([1, 2, 4, 5]), torch.tensor([2, 3, 5, 4]))
    for tensor in (*pool.layer(0), *pool.layer(1)):
        assert tensor[:, 0, 0, 0].tolist() == [0.0, 1.0, 1.0, 2.0, 5.0, 4.0]


def test_bytes_per_token_count_keys_and_values_of_all_layers():
    assert SHAPES.bytes_per_token == 2 * 2 * (3 + 5) * 4


def num_blocks(**settings):
    return choose_num_blocks(EngineConfig(**settings), SHAPES, max_model_len=100, device=CPU)


def test_the_number_of_blocks_wins_over_the_memory():
    assert num_blocks(num_blocks=7, kv_cache_gib=1.0) == 7


def test_the_memory_limits_the_pool():
    blocks = num_blocks(kv_cache_gib=0.001, block_size=16)
    assert blocks * 16 * SHAPES.bytes_per_token <= 0.001 * 2**30
    assert (blocks + 1) * 16 * SHAPES.bytes_per_token > 0.001 * 2**30


def test_by_default_every_row_can_reach_the_context_length():
    assert num_blocks(max_num_seqs=8, block_size=16) == 1 + 8 * 7


def test_by_default_the_pool_stays_within_a_quarter_of_the_free_memory(monkeypatch):
    monkeypatch.setattr("treepo.engine.kv.free_bytes", lambda device: 80_000)
    assert num_blocks(max_num_seqs=8, block_size=16) == 20_000 // (16 * SHAPES.bytes_per_token)


def version_2(limit, usage):
    return {"memory.max": limit, "memory.current": usage}


def version_1(limit, usage):
    return {"memory/memory.limit_in_bytes": limit, "memory/memory.usage_in_bytes": usage}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (version_2("1000", "300"), 700),
        (version_2("1000", "1300"), 0),
        (version_1("900", "200"), 700),
        (version_2("max", "300") | version_1("900", "250"), 650),
        (version_2("max", "300"), sys.maxsize),
        ({"memory.max": "1000"}, sys.maxsize),
        ({}, sys.maxsize),
    ],
)
def test_a_container_leaves_what_its_limit_and_use_say(tmp_path, files, free):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert _free_of_container(tmp_path) == free


def test_the_free_memory_is_no_more_than_the_container_leaves(monkeypatch):
    monkeypatch.setattr("treepo.engine.kv._free_of_container", lambda: 80_000)
    assert free_bytes(CPU) == 80_000


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (700, 1001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_in_large_pages_is_zero_and_can_be_written(shape, dtype):
    made = memory.zeros(shape, dtype, torch.device("cpu"))
    assert (made.shape, made.dtype) == (torch.Size(shape), dtype)
    assert not made.any()
    made.fill_(2)
    assert bool((made == 2).all())


def test_larger_pages_under_memory_in_use_change_nothing_in_it():
    data = torch.arange(3_000_000, dtype=torch.float32)
    expected = data.clone()
    memory.enlarge_pages(data.data_ptr(), data.nbytes)
    assert torch.equal(data, expected)
