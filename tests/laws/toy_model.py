"""A toy rule for the next token, a naive model over slots, and random configurations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from treepo import core

EOS = (9, 10)
VOCAB = 9
POISON = -1
MASK = (1 << 64) - 1

Draw = tuple[int, float, float]
"""Token id, log-probability and entropy."""


def mix(a: int, b: int) -> int:
    """Combines two words."""
    z = ((a << 5) ^ (a >> 3) ^ (b * 0x9E3779B97F4A7C15)) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    return z ^ (z >> 27)


def draw(read: int, uniform: float) -> Draw:
    """A token as a function of what was read and one uniform."""
    bits = mix(read, int(uniform * (1 << 53)))
    choice = (bits >> 20) % 100
    token = EOS[choice % 2] if choice < 12 else choice % VOCAB
    return token, -((bits >> 40) % 1000) / 200, (mix(read, 1) >> 40) % 1000 / 400


def hash_tokens(tokens: list[tuple[int, int]]) -> int:
    """Hash of (token, position) pairs in order."""
    state = 7
    for token, position in tokens:
        state = mix(state, mix(token + 1, position))
    return state


def search_configs() -> st.SearchStrategy[core.SearchConfig]:
    """Small searches; a completion has at most 12 tokens."""
    return st.builds(
        core.SearchConfig,
        width=st.integers(1, 8),
        segment_len=st.integers(1, 4),
        max_depth=st.integers(1, 3),
        branch_factor=st.integers(1, 3),
        initial_divergence=st.integers(1, 3),
        max_completion_len=st.none() | st.integers(1, 12),
        fallback=st.just("answered"),
        eos_token_ids=st.just(list(EOS)),
    )


def prompts() -> st.SearchStrategy[list[list[int]]]:
    """A few short prompts."""
    prompt = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=10)
    return st.lists(prompt, min_size=1, max_size=3)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Arguments of a scheduler."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int


@st.composite
def limits(draw_value: st.DrawFn) -> Limits:
    """From a pool of one path (22 tokens) up."""
    block_size = draw_value(st.sampled_from([1, 2, 4, 16]))
    one_path = -(-22 // block_size)
    return Limits(
        num_blocks=1 + one_path + draw_value(st.sampled_from([0, 1, 5, 200])),
        block_size=block_size,
        max_num_seqs=draw_value(st.sampled_from([1, 2, 5, 32])),
        max_num_batched_tokens=draw_value(st.sampled_from([1, 3, 8, 64])),
    )


class SlotModel:
    """Stores token and position in slots and hashes what it reads through its block tables."""

    def __init__(self, limits: Limits) -> None:
        self.block_size = limits.block_size
        self.slots = np.full((limits.num_blocks * limits.block_size, 2), POISON, np.int64)
        self.tables = np.zeros((limits.max_num_seqs, limits.num_blocks), np.int64)

    def run(self, buffers: core.PlanBuffers, sizes: core.PlanSizes) -> list[Draw]:
        """One draw for each sample of the plan."""
        for row, index, block in buffers.table_updates[: sizes.num_table_updates]:
            self.tables[row, index] = block
        self._copy(buffers.copies[: sizes.num_copies])
        n = sizes.num_tokens
        written = buffers.slot_mapping[:n]
        assert len(set(written[written > 0].tolist())) == int((written > 0).sum())
        self.slots[written] = np.stack([buffers.token_ids[:n], buffers.positions[:n]], axis=1)
        self.slots[: self.block_size] = POISON
        return [self._sample(buffers, i, sizes) for i in range(sizes.num_samples)]

    def _copy(self, copies: npt.NDArray[np.int32]) -> None:
        blocks = self.slots.reshape(-1, self.block_size, 2)
        old = blocks.copy()
        for source, target, num_slots in copies:
            blocks[target] = POISON
            blocks[target, :num_slots] = old[source, :num_slots]

    def _sample(self, buffers: core.PlanBuffers, sample: int, sizes: core.PlanSizes) -> Draw:
        index = int(buffers.sample_index[sample])
        starts = buffers.query_starts[: sizes.num_rows + 1]
        row = int(np.searchsorted(starts, index, side="right")) - 1
        assert index == starts[row + 1] - 1, "a sample is drawn from a row's last token"
        positions = np.arange(buffers.kv_lens[row])
        table = self.tables[buffers.row_ids[row]]
        slots = table[positions // self.block_size] * self.block_size
        read = self.slots[slots + positions % self.block_size]
        query = (int(buffers.token_ids[index]), int(buffers.positions[index]))
        state = hash_tokens([(int(token), int(position)) for token, position in read])
        return draw(mix(state, mix(*query)), float(buffers.uniforms[sample]))


def arrays(draws: list[Draw]) -> tuple[Any, Any, Any]:
    """Draws as the three arrays that the core takes."""
    ids, logprobs, entropies = zip(*draws, strict=True) if draws else ((), (), ())
    return (
        np.array(ids, np.uint32),
        np.array(logprobs, np.float32),
        np.array(entropies, np.float32),
    )
