"""Laws T1, T2 and T5 of the search, over a plain function that continues tokens."""

from __future__ import annotations

import configs
import numpy as np
import pytest
import toy_model as toy
from hypothesis import given
from hypothesis import strategies as st

from treepo import core
from treepo.forest import FinishReason, Forest, ForkOrigin


def continue_tokens(tokens: np.ndarray, limit: int, salt: int) -> list[tuple[int, float, float]]:
    """Up to `limit` tokens; the last one may end the sequence."""
    prefix = [(int(token), position) for position, token in enumerate(tokens)]
    draws = []
    for _ in range(limit):
        uniform = toy.mix(salt, len(prefix)) / 2**64
        draws.append(toy.draw(toy.hash_tokens(prefix), uniform))
        prefix.append((draws[-1][0], len(prefix)))
        if draws[-1][0] in toy.EOS:
            break
    return draws


def grow(
    config: core.SearchConfig, prompts: list[list[int]], order: int, *, is_cut: bool = False
) -> Forest:
    """Runs segments one by one; `order` picks which of the waiting ones is next.

    With `is_cut` the engine itself ends a path, at a token that 3 divides.
    """
    search = core.Search(config, seed=3)
    for key, prompt in enumerate(prompts):
        search.add_tree(key, np.array(prompt, np.uint32))
    while len(segments := search.segments()):
        tree, path, limit = (int(value) for value in segments[order % len(segments)])
        draws = continue_tokens(search.tokens(tree, path), limit, 1000 * tree + path)
        cuts = [place for place, (token, _, _) in enumerate(draws, 1) if token % 3 == 0]
        if is_cut and cuts:
            last = toy.arrays(draws[: cuts[0]])
            search.complete_path(tree, path, *last, FinishReason.STOP)
        else:
            search.complete_segment(tree, path, *toy.arrays(draws))
        search.check()
    assert search.is_done()
    return Forest(search.forest())


@given(configs.plain_configs(), configs.prompts())
def test_a_tree_has_exactly_width_leaves_within_its_limits(config, prompts):
    forest = grow(config, prompts, 0)
    assert np.all(np.diff(forest.trees.path_start) == config.width)
    prompt_len = forest.trees.prompt_len[forest.paths.tree]
    assert np.all(forest.paths.length - prompt_len <= config.max_completion_len)
    assert np.all(forest.paths.length > np.maximum(prompt_len, forest.paths.at))
    nodes = forest.nodes()
    assert np.all(nodes.depth[nodes.leaf] <= config.max_depth)


@given(configs.plain_configs(), configs.prompts())
def test_a_leaf_stops_at_the_first_end_of_sequence_and_only_there(config, prompts):
    forest = grow(config, prompts, 0)
    for path in range(forest.num_paths):
        ends = np.isin(forest.completion_ids(path), toy.EOS)
        assert not ends[:-1].any()
        assert (forest.paths.finish[path] == FinishReason.STOP) == ends[-1]


@given(configs.plain_configs(), configs.prompts(), st.integers(1, 50))
def test_the_order_in_which_segments_are_run_changes_nothing(config, prompts, order):
    first, second = (grow(config, prompts, i).columns() for i in (0, order))
    for name, column in first.items():
        np.testing.assert_array_equal(column, second[name], err_msg=name)


@given(configs.plain_configs(), configs.prompts())
def test_branches_leave_at_marks_and_restarts_before_the_end_of_an_answer(config, prompts):
    forest = grow(config, prompts, 0)
    marks = set(zip(forest.marks.path.tolist(), forest.marks.pos.tolist(), strict=True))
    paths, prompt_len = forest.paths, forest.trees.prompt_len
    for path in np.flatnonzero(paths.origin != ForkOrigin.ROOT):
        parent, at = int(paths.parent[path]), int(paths.at[path])
        assert paths.tree[parent] == paths.tree[path]
        assert parent < path
        is_prompt = at == prompt_len[paths.tree[path]]
        assert is_prompt or (parent, at) in marks
        assert paths.origin[path] != ForkOrigin.INITIAL or is_prompt
        assert paths.origin[path] != ForkOrigin.BRANCH or not is_prompt


@given(configs.plain_configs(), configs.prompts(), st.integers(1, 50))
def test_paths_that_the_engine_ends_are_leaves_in_any_order(config, prompts, order):
    first, second = (grow(config, prompts, i, is_cut=True) for i in (0, order))
    for name, column in first.columns().items():
        np.testing.assert_array_equal(column, second.columns()[name], err_msg=name)
    assert np.all(np.diff(first.trees.path_start) == config.width)
    assert first.trees.replayable.all()


def tokens_of(*ids: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A segment as the search takes it."""
    return toy.arrays([(token, -1.0, 1.0) for token in ids])


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH])
def test_a_path_that_the_engine_ends_is_a_leaf_and_its_tree_goes_on(reason):
    search = core.Search(core.SearchConfig(width=4, segment_len=3, max_depth=2))
    tree = search.add_tree(0, np.array([1, 2], np.uint32))
    search.complete_segment(tree, 0, *tokens_of(3))
    search.complete_path(tree, 0, *tokens_of(4), reason)
    while len(segments := search.segments()):
        assert not search.is_tree_done(tree)
        _, path, limit = segments[0].tolist()
        search.complete_segment(tree, path, *tokens_of(*[5] * limit))
    forest = Forest(search.forest())
    assert search.is_tree_done(tree)
    assert not search.is_tree_done(tree + 1)
    assert (forest.num_paths, forest.paths.finish[0]) == (4, reason)
    assert forest.completion_ids(0).tolist() == [3, 4]
    assert forest.trees.replayable.all()


def test_a_path_that_cannot_end_is_refused_and_goes_on():
    search = core.Search(core.SearchConfig(width=2, segment_len=3, max_depth=2))
    search.add_tree(0, np.array([1, 2], np.uint32))
    with pytest.raises(core.InvalidInputError, match="path 0 of tree 0 has no token of its own"):
        search.complete_path(0, 0, *tokens_of(), FinishReason.STOP)
    search.complete_segment(0, 0, *tokens_of(3))
    before = search.to_bytes()
    for reason in (*FinishReason, 77):
        if reason not in (FinishReason.STOP, FinishReason.LENGTH):
            with pytest.raises(core.InvalidInputError):
                search.complete_path(0, 0, *tokens_of(), reason)
    for tree, path in ((1, 0), (0, 9)):
        with pytest.raises(core.InvalidInputError):
            search.complete_path(tree, path, *tokens_of(), FinishReason.STOP)
    assert search.to_bytes() == before
    search.complete_path(0, 0, *tokens_of(), FinishReason.STOP)
    with pytest.raises(core.InvalidInputError, match="has no running segment"):
        search.complete_path(0, 0, *tokens_of(), FinishReason.STOP)


def test_a_path_that_the_engine_ends_with_its_segment_is_not_forked_there():
    search = core.Search(core.SearchConfig(width=2, segment_len=3, max_depth=2))
    tree = search.add_tree(0, np.array([1, 2], np.uint32))
    search.complete_segment(tree, 1, *tokens_of(5, 5, 5))
    search.complete_path(tree, 0, *tokens_of(3, 4, 6), FinishReason.STOP)
    assert search.segments()[:, 1].tolist() == [1]
    forest = Forest(search.forest())
    assert forest.paths.finish.tolist() == [FinishReason.STOP, FinishReason.NONE]


@pytest.mark.parametrize("field", ["width", "segment_len", "max_depth", "branch_factor"])
def test_a_zero_in_the_config_is_named(field):
    with pytest.raises(core.InvalidConfigError, match=f"{field}: must be at least 1, got 0"):
        core.SearchConfig(**{field: 0})


def test_a_segment_with_a_nan_is_refused_whole():
    search = core.Search(core.SearchConfig(width=1, segment_len=4))
    tree = search.add_tree(0, np.array([1], np.uint32))
    numbers = np.array([-1.0, np.nan], np.float32)
    with pytest.raises(core.NotFiniteError, match=r"log-probability is NaN for tree 0, path 0"):
        search.complete_segment(tree, 0, np.array([1, 2], np.uint32), numbers, numbers)
    assert len(search.tokens(tree, 0)) == 1


def test_a_tree_or_path_that_does_not_exist_is_an_error():
    search = core.Search(core.SearchConfig())
    with pytest.raises(core.InvalidInputError, match="tree 0"):
        search.tokens(0, 0)
    with pytest.raises(core.InvalidInputError, match="at least one token"):
        search.add_tree(0, np.array([], np.uint32))
