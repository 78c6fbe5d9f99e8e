"""A toy rule for the next token, toy verdicts, and a naive model that reads slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from configs import Limits

    from treepo import core

EOS = (9, 10)
VOCAB = 9
TEXTS = [b"", b"a", b"b", b"stop", b"\\boxed{", b"}", b"ab", b"aa", b"", b"", b""]
"""The bytes of every token, for the rules about text."""
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


def next_draw(tokens: list[int], uniform: float) -> Draw:
    """The token behind `tokens`, as the slot model draws it."""
    state = hash_tokens([(token, position) for position, token in enumerate(tokens)])
    return draw(mix(state, mix(tokens[-1], len(tokens) - 1)), uniform)


def verdict(key: int, path: int, length: int) -> tuple[str, float]:
    """A verdict and a score, as a function of the path and its length alone."""
    bits = mix(mix(key, path), length)
    name = {0: "stop", 1: "prune"}.get((bits >> 8) % 12, "continue")
    return name, float((bits >> 16) % 64)


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

    def forget(self) -> None:
        """Loses all that is stored."""
        self.slots[:] = POISON
        self.tables[:] = 0

    def row_tables(self, buffers: core.PlanBuffers, sizes: core.PlanSizes) -> list[list[int]]:
        """The blocks of each row of the plan."""
        num_blocks = -(-buffers.kv_lens[: sizes.num_rows] // self.block_size)
        rows = zip(buffers.row_ids[: sizes.num_rows], num_blocks, strict=True)
        return [self.tables[row, :count].tolist() for row, count in rows]

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
