"""Each back end equals attention written out, whatever the batch and the features."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from treepo import core
from treepo.core import PlanSizes
from treepo.engine.attention import LayerCall, NativeBackend, TorchBackend
from treepo.engine.hook import KVShapes, LayerShape
from treepo.engine.inputs import InputBuilder
from treepo.engine.kernels import Kernels
from treepo.engine.kv import KVPool, Layout

NUM_HEADS, NUM_KV_HEADS, KEY_DIM, VALUE_DIM = 6, 2, 8, 5
CPU = torch.device("cpu")
LAYER = LayerShape(
    num_heads=NUM_HEADS,
    num_kv_heads=NUM_KV_HEADS,
    key_dim=KEY_DIM,
    value_dim=VALUE_DIM,
    sliding_window=None,
    softcap=None,
    has_sinks=False,
)
BACKENDS = {
    "torch": lambda: TorchBackend(max_gathered_slots=1000, device=CPU),
    "torch-small-groups": lambda: TorchBackend(max_gathered_slots=50, device=CPU),
    **{
        f"native-{level}": lambda level=level: NativeBackend(Kernels(2, level=level))
        for level in core.Kernels.levels()
    },
}


@dataclasses.dataclass
class Plan:
    """The arrays of a step plan that attention reads."""

    token_ids: np.ndarray
    positions: np.ndarray
    slot_mapping: np.ndarray
    query_starts: np.ndarray
    kv_lens: np.ndarray
    row_ids: np.ndarray
    copies: np.ndarray
    table_updates: np.ndarray
    sample_index: np.ndarray
    uniforms: np.ndarray


def make_inputs(query_lens, kv_lens, block_size, backend):
    """A step of rows whose blocks are handed out in a scattered order."""
    num_rows, num_tokens = len(query_lens), sum(query_lens)
    blocks = itertools.count(1)
    tables = [[next(blocks) for _ in range(-(-n // block_size))] for n in kv_lens]
    order = np.random.default_rng(0).permutation(sum(map(len, tables))) + 1
    tables = [[int(order[block - 1]) for block in table] for table in tables]
    row_ids = np.arange(num_rows)[::-1]
    updates = [
        (row_ids[row], index, block)
        for row, table in enumerate(tables)
        for index, block in enumerate(table)
    ]
    plan = Plan(
        token_ids=np.zeros(num_tokens, np.int64),
        positions=np.zeros(num_tokens, np.int64),
        slot_mapping=step_slots(tables, query_lens, kv_lens, block_size),
        query_starts=np.cumsum([0, *query_lens]).astype(np.int32),
        kv_lens=np.array(kv_lens, np.int32),
        row_ids=row_ids.astype(np.int32),
        copies=np.zeros((0, 3), np.int32),
        table_updates=np.array(updates, np.int32),
        sample_index=np.zeros(1, np.int64),
        uniforms=np.zeros(1),
    )
    builder = InputBuilder(
        backend.arrange,
        max_num_seqs=num_rows,
        max_model_len=64,
        num_blocks=1 + len(order),
        block_size=block_size,
        device=CPU,
    )
    sizes = PlanSizes(num_rows, num_tokens, 1, 0, len(updates))
    return builder.build(plan, sizes), tables


def step_slots(tables, query_lens, kv_lens, block_size):
    """The slots of the last tokens of each row, those that the step computes."""
    return np.array(
        [
            table[position // block_size] * block_size + position % block_size
            for table, query_len, kv_len in zip(tables, query_lens, kv_lens, strict=True)
            for position in range(kv_len - query_len, kv_len)
        ],
        np.int64,
    )


def filled_pool(keys, values, layout, slots):
    """A pool that holds all keys and values but those of the step's own slots."""
    num_blocks, block_size = keys.shape[:2]
    pool = KVPool(
        KVShapes(layers=(LAYER,), dtype=torch.float32),
        num_blocks=num_blocks,
        block_size=block_size,
        device=CPU,
        layout=layout,
    )
    keys, values = keys.clone(), values.clone()
    for tensor in (keys, values):
        tensor.view(num_blocks * block_size, *tensor.shape[2:])[slots] = 0
    pool_keys, pool_values = pool.layer(0)
    if layout is Layout.TOKENS:
        pool_keys.copy_(keys)
        pool_values.copy_(values)
    else:
        pool_keys.copy_(keys.permute(0, 2, 3, 1))
        pool_values[..., :VALUE_DIM].copy_(values.transpose(1, 2))
    return pool


def written_out(query, keys, values, tables, query_lens, kv_lens, call):
    """Attention by definition, one query and one head at a time, in fp64."""
    outputs, token = [], 0
    for table, query_len, kv_len in zip(tables, query_lens, kv_lens, strict=True):
        row_keys = keys[table].flatten(0, 1).double()
        row_values = values[table].flatten(0, 1).double()
        for position in range(kv_len - query_len, kv_len):
            first = 0 if call.sliding_window is None else max(0, position + 1 - call.sliding_window)
            for head in range(NUM_HEADS):
                kv_head = head // (NUM_HEADS // NUM_KV_HEADS)
                scores = row_keys[first : position + 1, kv_head] @ query[token, head].double()
                scores = scores * call.scaling
                if call.softcap is not None:
                    scores = call.softcap * torch.tanh(scores / call.softcap)
                if call.sinks is not None:
                    scores = torch.cat([scores, call.sinks[head : head + 1].double()])
                weights = torch.softmax(scores, -1)[: position + 1 - first]
                outputs.append(weights @ row_values[first : position + 1, kv_head])
            token += 1
    return torch.stack(outputs).view(token, NUM_HEADS, VALUE_DIM)


CALLS = {
    "plain": LayerCall(scaling=0.35),
    "window": LayerCall(scaling=0.35, sliding_window=6),
    "softcap": LayerCall(scaling=0.35, softcap=1.5),
    "sinks": LayerCall(scaling=0.35, sinks=torch.linspace(-1.0, 2.0, NUM_HEADS)),
    "all": LayerCall(
        scaling=0.35, sliding_window=6, softcap=1.5, sinks=torch.linspace(-1.0, 2.0, NUM_HEADS)
    ),
}
BATCHES = {
    "decode": ([1] * 5, [1, 9, 30, 4, 17]),
    "prefill": ([3, 12], [3, 12]),
    "chunk": ([4], [30]),
    "mixed": ([1, 7, 1, 3, 7, 1, 1], [12, 7, 1, 30, 25, 13, 40]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("make_backend", BACKENDS.values(), ids=BACKENDS.keys())
def test_attention_equals_its_definition(call, batch, block_size, make_backend):
    query_lens, kv_lens = batch
    backend = make_backend()
    inputs, tables = make_inputs(query_lens, kv_lens, block_size, backend)
    generator = torch.Generator().manual_seed(0)
    num_blocks = 1 + sum(map(len, tables))
    query = torch.randn(sum(query_lens), NUM_HEADS, KEY_DIM, generator=generator)
    keys = torch.randn(num_blocks, block_size, NUM_KV_HEADS, KEY_DIM, generator=generator)
    values = torch.randn(num_blocks, block_size, NUM_KV_HEADS, VALUE_DIM, generator=generator)
    slots = inputs.slot_mapping
    pool = filled_pool(keys, values, backend.layout, slots)
    order = inputs.arrangement.token_order
    order = torch.arange(len(query)) if order is None else torch.from_numpy(order)
    actual = torch.empty(len(query), NUM_HEADS, VALUE_DIM)
    actual[order] = backend.attend(
        0, query[order], keys.flatten(0, 1)[slots], values.flatten(0, 1)[slots], pool, inputs, call
    )
    expected = written_out(query, keys, values, tables, query_lens, kv_lens, call)
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_group_gathers_no_more_slots_than_the_limit():
    backend = TorchBackend(max_gathered_slots=50, device=CPU)
    inputs, _ = make_inputs([1] * 12, list(range(1, 25, 2)), 4, backend)
    groups = inputs.arrangement.state
    assert len(groups) > 1
    assert all(group.num_rows * group.kv_len <= 50 for group in groups)
    assert sum(group.num_rows for group in groups) == 12
    assert sorted(inputs.arrangement.token_order.tolist()) == list(range(12))


def test_a_row_longer_than_the_limit_stands_alone():
    backend = TorchBackend(max_gathered_slots=8, device=CPU)
    inputs, _ = make_inputs([1, 1], [30, 4], 4, backend)
    assert [group.kv_len for group in inputs.arrangement.state] == [4, 30]


def test_samples_that_share_a_token_read_one_logits_row():
    plan = Plan(
        token_ids=np.zeros(4, np.int64),
        positions=np.zeros(4, np.int64),
        slot_mapping=np.arange(4),
        query_starts=np.array([0, 3, 4], np.int32),
        kv_lens=np.array([3, 9], np.int32),
        row_ids=np.array([0, 1], np.int32),
        copies=np.zeros((0, 3), np.int32),
        table_updates=np.zeros((0, 3), np.int32),
        sample_index=np.array([2, 2, 2, 3, 3], np.int64),
        uniforms=np.zeros(5),
    )
    builder = InputBuilder(
        TorchBackend(max_gathered_slots=1000, device=CPU).arrange,
        max_num_seqs=2,
        max_model_len=16,
        num_blocks=9,
        block_size=4,
        device=CPU,
    )
    inputs = builder.build(plan, PlanSizes(2, 4, 5, 0, 0))
    # The decoding row comes first in the step; slot_mapping holds each token's place in the plan.
    assert inputs.slot_mapping[inputs.logit_rows].tolist() == [2, 3]
    assert inputs.sample_rows.tolist() == [0, 0, 0, 1, 1]
