"""Laws B1 and B2 of the block pool through the binding."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from treepo import core

NUM_BLOCKS = 7


class PoolMachine(RuleBasedStateMachine):
    """The pool beside a dictionary of counts."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = core.BlockPool(NUM_BLOCKS)
        self.counts: dict[int, int] = {}

    @rule()
    def allocate(self) -> None:
        block = self.pool.allocate()
        if block is None:
            assert len(self.counts) == NUM_BLOCKS - 1
        else:
            assert 0 < block < NUM_BLOCKS
            assert block not in self.counts
            self.counts[block] = 1

    @rule(block=st.integers(0, NUM_BLOCKS + 1))
    def retain(self, block: int) -> None:
        if block in self.counts:
            self.pool.retain(block)
            self.counts[block] += 1
        else:
            with pytest.raises(core.InvalidInputError, match="no holder"):
                self.pool.retain(block)

    @rule(block=st.integers(0, NUM_BLOCKS + 1))
    def release(self, block: int) -> None:
        if block not in self.counts:
            with pytest.raises(core.InvalidInputError, match="no holder"):
                self.pool.release(block)
            return
        self.counts[block] -= 1
        assert self.pool.release(block) == (self.counts[block] == 0)
        if self.counts[block] == 0:
            del self.counts[block]

    @invariant()
    def counts_agree(self) -> None:
        self.pool.check()
        assert self.pool.num_free + len(self.counts) == NUM_BLOCKS - 1
        for block in range(NUM_BLOCKS):
            assert self.pool.count(block) == self.counts.get(block, 0)


TestPool = PoolMachine.TestCase


def test_a_pool_needs_a_block_beside_the_reserved_one():
    with pytest.raises(core.InvalidConfigError, match=r"num_blocks: must be 2 .*got"):
        core.BlockPool(1)
