"""A scheduler that runs over the slot model; laws are checked after every call."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import toy_model as toy
from configs import Limits

from treepo import core
from treepo.forest import Forest, TokenKind


class Driver:
    """Scheduler, model and plan arrays."""

    def __init__(self, config: core.SearchConfig, limits: Limits) -> None:
        self.limits = limits
        self.scheduler = core.Scheduler(
            config,
            seed=5,
            num_blocks=limits.num_blocks,
            block_size=limits.block_size,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            admission_percent=limits.admission_percent,
            age_bias=limits.age_bias,
        )
        self.scheduler.set_texts(toy.TEXTS)
        self.model = toy.SlotModel(limits)
        self.buffers = core.PlanBuffers(self.scheduler)
        self.groups = core.GroupBuffers(self.scheduler)
        self.keys: list[int] = []
        self.draws: list[toy.Draw] | None = None
        """What the open plan has sampled."""

    def add_tree(self, key: int, prompt: list[int]) -> None:
        """Adds a tree."""
        tree = self.scheduler.add_tree(key, np.array(prompt, np.uint32))
        assert tree == len(self.keys)
        self.keys.append(key)

    def plan(self) -> bool:
        """Plans and runs a step; false if nothing can run."""
        sizes = self.buffers.plan(self.scheduler)
        self.scheduler.check()
        assert sizes.num_tokens <= self.limits.max_num_batched_tokens
        assert max(sizes.num_rows, sizes.num_samples) <= self.limits.max_num_seqs
        if sizes.num_rows == 0:
            assert self.scheduler.is_done() or len(self.scheduler.ended_segments()), "S1"
            return False
        self.draws = self.model.run(self.buffers, sizes)
        self.check_groups(sizes)
        return True

    def commit(self) -> None:
        """Commits the open plan."""
        assert self.draws is not None
        self.scheduler.commit_step(*toy.arrays(self.draws))
        self.draws = None
        self.scheduler.check()

    def give_up(self) -> None:
        """Loses the open plan and all keys and values, as after a step that failed."""
        self.scheduler.drop_memory()
        self.scheduler.check()
        self.model.forget()
        self.draws = None

    def judge(self, delay: int, step: int) -> None:
        """Judges ended segments; with a delay each one only with probability 1 / (1 + delay)."""
        for tree, path in self.scheduler.ended_segments().tolist():
            length = len(self.scheduler.tokens(tree, path))
            if delay and toy.mix(step, 64 * tree + path) % (1 + delay):
                continue
            verdict, score = toy.verdict(self.keys[tree], path, length)
            self.scheduler.report(tree, path, verdict, score=score)
            self.scheduler.check()

    def restore(self) -> None:
        """Goes on from a snapshot, as another process would, without keys and values."""
        self.scheduler = core.Scheduler.from_bytes(self.scheduler.to_bytes())
        self.scheduler.check()
        self.model.forget()

    def finish(self, delay: int = 0) -> Forest:
        """Runs all trees to their end."""
        for step in range(100_000):
            if self.plan():
                self.commit()
            elif self.scheduler.is_done():
                return Forest(self.scheduler.forest())
            else:
                self.judge(0, step)
            self.judge(delay, step)
        raise AssertionError("S1: no end")

    def check_groups(self, sizes: core.PlanSizes) -> None:
        """The rows of a group have equal entries; what neighbours share is in their groups."""
        num_groups = self.groups.group(self.scheduler)
        order = self.groups.row_order[: sizes.num_rows].tolist()
        groups = self.groups.groups[:num_groups].tolist()
        assert sorted(order) == list(range(sizes.num_rows))
        tables = self.model.row_tables(self.buffers, sizes)
        shared = np.zeros(sizes.num_rows, np.int64)
        for first, num_rows, start, end in groups:
            assert num_rows > 1
            fronts = {tuple(tables[row][:end]) for row in order[first : first + num_rows]}
            assert len(fronts) == 1
            assert 0 <= start < end == len(fronts.pop())
            shared[first : first + num_rows - 1] += end - start
        for place, (row, other) in enumerate(pairwise(order)):
            assert common_front(tables[row], tables[other]) == shared[place]


def common_front(a: list[int], b: list[int]) -> int:
    """Blocks that two rows have in common."""
    differs = [x != y for x, y in zip(a, b, strict=False)]
    return differs.index(True) if True in differs else len(differs)


def check_reads(forest: Forest) -> None:
    """T6: every token was drawn from exactly its own path's tokens; the entropy tells."""
    for path in range(forest.num_paths):
        ids = forest.token_ids(path).tolist()
        index = forest.token_index(path)
        for position in np.flatnonzero(forest.tokens.kind[index] == TokenKind.SAMPLED):
            _, _, entropy = toy.next_draw(ids[:position], 0.0)
            assert forest.tokens.entropy[index[position]] == np.float32(entropy), (path, position)
