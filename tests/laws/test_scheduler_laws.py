"""Laws of the scheduler through the binding: S1 to S5, T6, B1 to B4."""

from __future__ import annotations

import configs
import numpy as np
import pytest
import toy_model as toy
from configs import WIDE, Limits
from driver import Driver, check_reads
from hypothesis import given, settings
from hypothesis import strategies as st

from treepo import core
from treepo.forest import Forest

Arrival = list[tuple[int, list[int]]]


def run(
    config: core.SearchConfig, limits: Limits, arrival: Arrival, late: int = 0, delay: int = 0
) -> tuple[Forest, dict[str, int]]:
    """Runs the trees to their end; the last `late` of them arrive one a step."""
    driver = Driver(config, limits)
    for place, (key, prompt) in enumerate(arrival):
        if place >= len(arrival) - late and driver.plan():
            driver.commit()
            driver.judge(delay, place)
        driver.add_tree(key, prompt)
    forest = driver.finish(delay)
    assert sorted(driver.scheduler.take_finished()) == list(range(len(arrival)))
    check_reads(forest)
    return forest, driver.scheduler.stats()


def by_key(forest: Forest) -> list[dict[str, np.ndarray]]:
    """The columns of each tree alone, by key."""
    order = np.argsort(forest.trees.key)
    return [forest.select([int(tree)]).columns() for tree in order]


@settings(max_examples=max(250, settings().max_examples))
@given(
    *(configs.search_configs(), configs.prompts(), configs.limits()),
    *(st.randoms(), st.integers(0, 3), st.integers(0, 3)),
)
def test_s4_the_forest_is_the_same_for_every_schedule(config, prompts, limits, random, late, delay):
    arrival = list(enumerate(prompts))
    expected, _ = run(config, WIDE, arrival)
    random.shuffle(arrival)
    actual, _ = run(config, limits, arrival, late, delay)
    for one, other in zip(by_key(actual), by_key(expected), strict=True):
        for name, column in one.items():
            np.testing.assert_array_equal(column, other[name], err_msg=name)


@given(configs.search_configs(), configs.prompts(), configs.limits(), st.integers(0, 12))
def test_a_forest_that_goes_on_from_a_snapshot_is_the_same(config, prompts, limits, steps):
    drivers = [Driver(config, limits), Driver(config, limits)]
    for driver in drivers:
        for key, prompt in enumerate(prompts):
            driver.add_tree(key, prompt)
        for _ in range(steps):
            if driver.plan():
                driver.commit()
    drivers[1].restore()
    expected, actual = (driver.finish().columns() for driver in drivers)
    for name, column in expected.items():
        np.testing.assert_array_equal(actual[name], column, err_msg=name)


@given(
    *(configs.search_configs(), configs.prompts(), configs.limits()),
    st.lists(st.booleans(), max_size=20),
)
def test_steps_that_fail_change_no_tree(config, prompts, limits, failures):
    arrival = list(enumerate(prompts))
    expected, _ = run(config, WIDE, arrival)
    driver = Driver(config, limits)
    for key, prompt in arrival:
        driver.add_tree(key, prompt)
    for step, fails in enumerate(failures):
        if driver.plan():
            driver.give_up() if fails else driver.commit()
        driver.judge(0, step)
    actual = driver.finish()
    assert driver.scheduler.stats()["decoded_tokens"] == actual.num_unique_completion_tokens
    for name, column in expected.columns().items():
        np.testing.assert_array_equal(actual.columns()[name], column, err_msg=name)


@given(configs.search_configs(), configs.prompts(), configs.limits())
def test_s5_every_token_is_decoded_once_and_repeated_work_is_counted(config, prompts, limits):
    forest, stats = run(config, limits, list(enumerate(prompts)))
    assert stats["decoded_tokens"] == forest.num_unique_completion_tokens
    if stats["recomputed_tokens"]:
        assert stats["evictions"] + stats["preemptions"] + stats["prunes"] > 0


@given(configs.plain_configs(), configs.prompts(), configs.limits())
def test_t2_every_tree_has_its_width(config, prompts, limits):
    forest, _ = run(config, limits, list(enumerate(prompts)))
    assert np.all(np.diff(forest.trees.path_start) == config.width)


@given(configs.search_configs(), configs.prompts(), configs.limits(), st.integers(6, 60))
def test_trees_that_share_the_tokens_of_a_segment_end_and_are_not_replayable(
    config, prompts, limits, step_tokens
):
    fields = config.to_dict() | {"opportunistic": "step_tokens", "step_tokens": step_tokens}
    forest, _ = run(core.SearchConfig(**fields), limits, list(enumerate(prompts)))
    assert not forest.trees.replayable.any()


def test_a_tight_pool_preempts_evicts_and_copies():
    config = core.SearchConfig(width=8, segment_len=3, max_depth=4, eos_token_ids=[9, 10])
    limits = Limits(num_blocks=12, block_size=2, max_num_seqs=6, max_num_batched_tokens=5)
    _, stats = run(config, limits, [(key, [1, 2, 3, key]) for key in range(6)])
    names = ("preemptions", "evictions", "block_copies", "chunked_prefills", "recomputed_tokens")
    assert all(stats[name] > 0 for name in names), stats


def make_scheduler(config: core.SearchConfig, limits: Limits) -> core.Scheduler:
    """A scheduler of these limits."""
    return Driver(config, limits).scheduler


def tree_of(scheduler: core.Scheduler) -> int:
    """Adds a small tree."""
    return scheduler.add_tree(0, np.array([1, 2], np.uint32))


def test_a_pool_too_small_for_one_path_says_what_is_needed():
    limits = Limits(num_blocks=3, block_size=2, max_num_seqs=4, max_num_batched_tokens=8)
    scheduler = make_scheduler(core.SearchConfig(segment_len=4, max_depth=1), limits)
    with pytest.raises(core.PoolTooSmallError, match="needs 3 KV blocks but the pool has 2"):
        tree_of(scheduler)
    assert scheduler.is_done()


def test_a_prompt_without_room_is_refused():
    scheduler = make_scheduler(core.SearchConfig(max_model_len=2), WIDE)
    with pytest.raises(core.PromptTooLongError, match="prompt of 2 tokens"):
        tree_of(scheduler)


def test_a_short_or_wrong_array_is_named():
    scheduler = make_scheduler(core.SearchConfig(segment_len=4), WIDE)
    tree_of(scheduler)
    buffers = core.PlanBuffers(scheduler)
    kept, buffers.uniforms = buffers.uniforms, buffers.uniforms[:3].copy()
    with pytest.raises(core.BufferTooSmallError, match="uniforms has 3 elements, 64 are needed"):
        buffers.plan(scheduler)
    buffers.uniforms = kept.astype(np.float32)
    with pytest.raises(core.InvalidInputError, match="uniforms"):
        buffers.plan(scheduler)
    buffers.uniforms = kept
    assert buffers.plan(scheduler).num_samples == 2


def test_a_commit_with_a_nan_leaves_the_plan_open():
    scheduler = make_scheduler(core.SearchConfig(segment_len=4), WIDE)
    tree_of(scheduler)
    buffers = core.PlanBuffers(scheduler)
    ids, good = np.array([1, 2], np.uint32), np.array([-1.0, -1.0], np.float32)
    with pytest.raises(core.InvalidInputError, match="no plan"):
        scheduler.commit_step(ids, good, good)
    buffers.plan(scheduler)
    with pytest.raises(core.InvalidInputError, match="commit the open plan before"):
        buffers.plan(scheduler)
    with pytest.raises(core.NotFiniteError, match="entropy is inf for tree 0, path 1"):
        scheduler.commit_step(ids, good, np.array([1.0, np.inf], np.float32))
    with pytest.raises(core.InvalidInputError, match="1 tokens for a plan of 2"):
        scheduler.commit_step(ids[:1], good[:1], good[:1])
    scheduler.commit_step(ids, good, good)
    scheduler.check()


def test_an_aborted_tree_gives_its_memory_back():
    scheduler = make_scheduler(core.SearchConfig(segment_len=4), WIDE)
    tree = tree_of(scheduler)
    buffers = core.PlanBuffers(scheduler)
    sizes = buffers.plan(scheduler)
    draws = toy.SlotModel(WIDE).run(buffers, sizes)
    scheduler.commit_step(*toy.arrays(draws))
    scheduler.abort_tree(tree)
    assert scheduler.is_done()
    scheduler.check()
    assert scheduler.take_finished() == [tree]


def test_a_scheduler_tells_its_limits_and_so_does_its_snapshot():
    limits = {"num_blocks": 50, "block_size": 4, "max_num_seqs": 7, "max_num_batched_tokens": 33}
    scheduler = core.Scheduler(core.SearchConfig(), **limits, policy_version=3)
    for each in (scheduler, core.Scheduler.from_bytes(scheduler.to_bytes())):
        assert {name: getattr(each, name) for name in limits} == limits
        assert each.policy_version == 3
        each.set_policy_version(9)
        assert each.policy_version == 9


def test_the_samples_of_a_plan_are_in_the_order_of_its_paths():
    driver = Driver(core.SearchConfig(width=3, segment_len=2, max_depth=2), WIDE)
    for key in range(2):
        driver.add_tree(key, [1, 2, key])
    scheduler = driver.scheduler
    assert scheduler.sampled_paths().shape == (0, 2)
    while driver.plan():
        paths, draws = scheduler.sampled_paths(), driver.draws
        assert (paths.dtype, paths.shape) == (np.int32, (len(draws), 2))
        before = [scheduler.tokens(*path).tolist() for path in paths.tolist()]
        driver.commit()
        after = [scheduler.tokens(*path).tolist() for path in paths.tolist()]
        pairs = zip(before, draws, strict=True)
        assert after == [[*tokens, token] for tokens, (token, _, _) in pairs]
        assert scheduler.sampled_paths().shape == (0, 2)
    assert scheduler.is_done()


def test_a_plan_that_is_given_up_has_no_samples_and_is_made_again():
    driver = Driver(core.SearchConfig(width=3, segment_len=2, max_depth=2), WIDE)
    driver.add_tree(0, [1, 2])
    assert driver.plan()
    draws, paths = driver.draws, driver.scheduler.sampled_paths().tolist()
    driver.give_up()
    assert driver.scheduler.sampled_paths().shape == (0, 2)
    with pytest.raises(core.InvalidInputError, match="no plan"):
        driver.scheduler.commit_step(*toy.arrays(draws))
    assert driver.plan()
    again = zip(driver.scheduler.sampled_paths().tolist(), driver.draws, strict=True)
    assert all(draw == draws[paths.index(path)] for path, draw in again)


@pytest.mark.parametrize("kind", ["search", "scheduler"])
def test_a_forest_of_some_trees_is_those_of_the_whole_forest(kind):
    config = core.SearchConfig(width=3, segment_len=2, max_depth=2)
    made = core.Search(config) if kind == "search" else make_scheduler(config, WIDE)
    for key in range(3):
        made.add_tree(key, np.arange(1, 3 + key, dtype=np.uint32))
    made.abort_tree(1)
    whole = Forest(made.forest())
    for trees in ([2, 0], [1], []):
        some = Forest(made.forest(np.array(trees, np.uint32)))
        assert some.trees.key.tolist() == trees
        for name, column in whole.select(trees).columns().items():
            np.testing.assert_array_equal(some.columns()[name], column, err_msg=name)
    assert Forest(made.forest(trees=None)).num_trees == 3
    with pytest.raises(core.InvalidInputError, match="tree 3"):
        made.forest(trees=np.array([0, 3], np.uint32))
    with pytest.raises(core.InvalidInputError, match="one-dimensional array of uint32"):
        made.forest(trees=[0])
