"""The laws under calls of the embedding program, in any order, with ids that may not exist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import configs
import numpy as np
import pytest
import toy_model as toy
from configs import WIDE, Limits
from driver import Driver, check_reads
from hypothesis import given, settings
from hypothesis import strategies as st

from treepo import core
from treepo.forest import FinishReason, Forest, ForkOrigin

VERDICTS = ("continue", "stop", "prune", "perhaps")


class Machine(Driver):
    """One call each; a call that is refused must have changed nothing."""

    def __init__(self, config: core.SearchConfig, limits: Limits, seen: Counter[str]) -> None:
        super().__init__(config, limits)
        self.seen = seen
        self.version = 0

    def apply(self, name: str, numbers: list[int]) -> None:
        """Does one call; small numbers choose the tree, the path and the position."""
        before = self.state()
        try:
            getattr(self, "call_" + name)(*numbers)
            self.seen[name] += 1
        except core.InvalidInputError:
            assert self.state() == before, f"{name} failed and changed something"
        self.scheduler.check()

    def state(self) -> list[Any]:
        """All that can be seen."""
        columns = self.scheduler.forest().columns()
        ended = self.scheduler.ended_segments().tolist()
        return [self.scheduler.stats(), ended, *(column.tobytes() for column in columns.values())]

    def position(self, a: int, b: int, c: int) -> tuple[int, int, int]:
        """A tree, a path of it and a position; each may lie one outside."""
        forest = Forest(self.scheduler.forest())
        tree = a % (forest.num_trees + 1)
        if tree == forest.num_trees:
            return tree, b, c
        first, last = forest.trees.path_start[tree : tree + 2].tolist()
        path = b % (last - first + 1)
        low = int(forest.trees.prompt_len[tree]) - 1
        length = int(forest.paths.length[first + path]) if first + path < last else low
        return tree, path, low + c % (length + 2 - low)

    def call_step(self, a: int, *_: int) -> None:
        for _ in range(1 + a % 4):
            if self.draws is None and self.plan():
                self.commit()

    def call_plan(self, *_: int) -> None:
        self.plan()

    def call_commit(self, *_: int) -> None:
        if self.draws is None:
            self.scheduler.commit_step(*toy.arrays([]))
        self.commit()

    def call_judge(self, a: int, *_: int) -> None:
        if self.draws is None:
            self.judge(a % 3, a)

    def call_report(self, a: int, b: int, c: int) -> None:
        ended = self.scheduler.ended_segments().tolist()
        tree, path = ended[a % len(ended)] if ended and b % 4 else self.position(a, b, c)[:2]
        score = float("nan") if c % 7 == 0 else float(c)
        self.scheduler.report(tree, path, VERDICTS[c % 4], score=score)

    def call_fork(self, *numbers: int) -> None:
        tree, path, at = self.position(*numbers)
        new = self.scheduler.fork(tree, path, at)
        tokens = self.scheduler.tokens(tree, path)
        np.testing.assert_array_equal(self.scheduler.tokens(tree, new), tokens[:at])

    def call_prune(self, *numbers: int) -> None:
        self.scheduler.prune(*self.position(*numbers)[:2])

    def call_prune_subtree(self, *numbers: int) -> None:
        before = self.num_live()
        num_pruned = self.scheduler.prune_subtree(*self.position(*numbers))
        assert self.num_live() >= before - num_pruned

    def call_rewind(self, *numbers: int) -> None:
        tree, path, at = self.position(*numbers)
        new = self.scheduler.rewind(tree, path, at)
        assert len(self.scheduler.tokens(tree, new)) == at

    def call_abort(self, a: int, *_: int) -> None:
        self.scheduler.abort_tree(a % (len(self.keys) + 1))

    def call_priority(self, a: int, b: int, c: int) -> None:
        self.scheduler.set_priority(a % (len(self.keys) + 1), (b - c) * (c % 3))

    def call_version(self, *_: int) -> None:
        self.version += 1
        self.scheduler.set_policy_version(self.version)

    def call_drop_memory(self, *_: int) -> None:
        self.give_up()

    def call_snapshot(self, *_: int) -> None:
        before = self.state()
        self.restore()
        assert self.state() == before

    def call_add(self, a: int, b: int, c: int) -> None:
        self.add_tree(100 + len(self.keys), [a % toy.VOCAB, b % toy.VOCAB, *range(c % 8)])

    def num_live(self) -> int:
        """Paths that live."""
        return int((Forest(self.scheduler.forest()).paths.finish == FinishReason.NONE).sum())


FREQUENT = ["step", "step", "plan", "commit", "judge", "report"]
RARE = ["prune_subtree", "abort", "priority", "version", "drop_memory", "snapshot", "add"]
CALL = st.tuples(
    st.sampled_from([*FREQUENT, "fork", "prune", "rewind", *FREQUENT, "fork", "rewind", *RARE]),
    st.lists(st.integers(0, 40), min_size=3, max_size=3),
)
CALLS = st.integers(0, 60).flatmap(lambda count: st.lists(CALL, min_size=count, max_size=count))


def machine_test() -> Callable[[], Counter[str]]:
    """A property test that tells how often each call went through."""
    seen: Counter[str] = Counter()

    @settings(max_examples=max(300, settings().max_examples))
    @given(configs.search_configs(), configs.limits(), configs.prompts(), CALLS)
    def test(config, limits, prompts, calls):
        machine = Machine(config, limits, seen)
        for key, prompt in enumerate(prompts):
            machine.add_tree(key, prompt)
        for name, numbers in calls:
            machine.apply(name, numbers)
        if machine.draws is not None:
            machine.commit()
        check_end(machine.finish())

    def run() -> Counter[str]:
        test()
        return seen

    return run


def check_end(forest: Forest) -> None:
    """T5 and T6 of a finished forest; a tree that the caller shaped is not replayable."""
    check_reads(forest)
    assert (forest.paths.finish != FinishReason.NONE).all()
    by_caller = forest.paths.tree[forest.paths.origin == ForkOrigin.CALLER]
    aborted = forest.paths.tree[forest.paths.finish == FinishReason.ABORT]
    assert not forest.trees.replayable[by_caller].any()
    assert not forest.trees.replayable[aborted].any()


def test_the_laws_hold_for_calls_in_any_order():
    seen = machine_test()()
    names = {*FREQUENT, *RARE, "fork", "prune", "rewind"}
    assert {name for name in names if seen[name] == 0} == set(), "calls that never went through"


def started(config: core.SearchConfig, prompt: list[int], steps: int) -> Driver:
    """A driver with one tree that has run for some steps."""
    driver = Driver(config, WIDE)
    driver.add_tree(7, prompt)
    for _ in range(steps):
        assert driver.plan()
        driver.commit()
    return driver


def test_a_pruned_path_gives_its_blocks_back_at_once_and_the_others_go_on():
    config = core.SearchConfig(width=4, segment_len=12, max_depth=1, initial_divergence=4)
    driver = started(config, [1, 2, 3], 3)
    driver.scheduler.prune(0, 1)
    driver.scheduler.check()
    forest = driver.finish()
    assert forest.paths.finish.tolist().count(FinishReason.PRUNED) == 1
    assert driver.scheduler.stats()["prunes"] == 1
    check_reads(forest)


def test_a_path_that_is_pruned_before_its_first_token_is_not_sampled():
    config = core.SearchConfig(width=3, segment_len=4, max_depth=1, initial_divergence=3)
    driver = Driver(config, WIDE)
    driver.add_tree(7, [1, 2, 3])
    driver.scheduler.prune(0, 1)
    forest = driver.finish()
    assert forest.paths.finish[1] == FinishReason.PRUNED
    assert forest.paths.length.tolist() == [7, 3, 7]


def test_a_rewind_replaces_the_path_and_keeps_the_width():
    config = core.SearchConfig(width=2, segment_len=12, max_depth=1)
    driver = started(config, [1, 2, 3], 4)
    new = driver.scheduler.rewind(0, 0, 5)
    forest = driver.finish()
    assert (forest.paths.parent[new], forest.paths.at[new]) == (0, 5)
    assert forest.paths.origin[new] == ForkOrigin.CALLER
    assert forest.num_paths == 3
    assert forest.paths.finish.tolist().count(FinishReason.PRUNED) == 1


def test_a_full_tree_is_not_forked():
    driver = started(core.SearchConfig(width=2, segment_len=12, max_depth=1), [1, 2, 3], 2)
    with pytest.raises(core.InvalidInputError, match="leaves and live paths are 2 of width 2"):
        driver.scheduler.fork(0, 0, 4)


def test_nothing_runs_while_every_path_waits_for_a_verdict():
    config = core.SearchConfig(width=2, segment_len=2, max_depth=4, verdicts="segments")
    driver = started(config, [1, 2, 3], 2)
    assert not driver.plan()
    assert not driver.scheduler.is_done()
    assert driver.scheduler.ended_segments().tolist() == [[0, 0], [0, 1]]
    driver.scheduler.report(0, 0, "stop")
    driver.scheduler.report(0, 1, score=1.5)
    assert driver.plan()
    driver.commit()
    assert driver.finish().paths.finish[0] == FinishReason.STOP


def test_priorities_change_the_order_and_nothing_else():
    config = core.SearchConfig(width=3, segment_len=4, max_depth=3, eos_token_ids=toy.EOS)
    limits = Limits(num_blocks=2000, block_size=4, max_num_seqs=3, max_num_batched_tokens=64)
    finished, forests = [], []
    for priority in (0, 9):
        driver = Driver(config, limits)
        for key in range(4):
            driver.add_tree(key, [1, 2, key])
        driver.scheduler.set_priority(3, priority)
        forests.append(driver.finish())
        finished.append(driver.scheduler.take_finished())
    assert finished[0][0] != 3
    assert finished[1][0] == 3
    for name, column in forests[0].columns().items():
        np.testing.assert_array_equal(column, forests[1].columns()[name], err_msg=name)


def test_after_dropping_the_memory_everything_is_computed_again():
    config = core.SearchConfig(width=3, segment_len=12, max_depth=1)
    driver = started(config, [1, 2, 3], 4)
    driver.scheduler.drop_memory()
    driver.model.forget()
    check_reads(driver.finish())
    assert driver.scheduler.stats()["recomputed_tokens"] > 0


def test_trees_with_the_same_prompt_share_it_and_their_rows_form_a_group():
    config = core.SearchConfig(width=2, segment_len=4, max_depth=1)
    driver = Driver(config, WIDE)
    for key in range(3):
        driver.add_tree(key, [1, 2, 3, 4, 5, 6, 7, 8, 1, 2])
    for _ in range(3):
        assert driver.plan()
        num_rows, num_blocks = 6, 2
        groups = driver.groups.groups[: driver.groups.group(driver.scheduler)].tolist()
        driver.commit()
    assert [0, num_rows, 0, num_blocks] in groups
    assert driver.scheduler.stats()["shared_prefix_tokens"] == 2 * 8
    check_reads(driver.finish())
