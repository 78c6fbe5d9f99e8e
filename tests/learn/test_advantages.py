"""Advantages of whole forests, against vectors computed by the published code of TreePO."""

import numpy as np
import pytest
from trees import GOLDEN, add_tree, append, assert_golden, flat_forest, golden_forest, rewards_of

from treepo import core
from treepo.advantages import (
    PRESETS,
    AncestorGroups,
    advantages,
    num_sampled_tokens,
    whiten,
)
from treepo.advantages.groups import minus_ancestors
from treepo.errors import InvalidConfigError, InvalidInputError
from treepo.forest import Forest

VARIANTS = {"treepo": "tree_traj/average/keep", "grpo": "grpo/std"}
by_tree = pytest.mark.parametrize("tree", GOLDEN, ids=[tree["id"] for tree in GOLDEN])


def whitened_token_by_token(values, token_counts):
    tokens = np.repeat(values, token_counts)
    return (values - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)


@by_tree
@pytest.mark.parametrize("preset", VARIANTS)
def test_a_tree_has_the_advantages_of_the_published_code(tree, preset):
    actual = advantages(golden_forest([tree]), rewards_of([tree]), preset)
    assert_golden(actual, tree["results"][VARIANTS[preset]]["post"])


@by_tree
def test_the_mean_over_ancestor_groups_is_that_of_the_published_code(tree):
    actual = minus_ancestors(golden_forest([tree]), rewards_of([tree]), AncestorGroups())
    assert_golden(actual, tree["results"]["tree_traj/average/keep"]["pre"])


def test_baselines_do_not_depend_on_the_other_trees_of_a_forest():
    actual = minus_ancestors(golden_forest(GOLDEN), rewards_of(GOLDEN), AncestorGroups())
    assert_golden(
        actual, [a for tree in GOLDEN for a in tree["results"]["tree_traj/average/keep"]["pre"]]
    )


def test_grpo_does_not_depend_on_the_other_trees_of_a_forest():
    actual = advantages(golden_forest(GOLDEN), rewards_of(GOLDEN), "grpo")
    assert_golden(actual, [a for tree in GOLDEN for a in tree["results"]["grpo/std"]["post"]])


def test_whitening_is_over_all_trees_of_a_forest():
    pre = np.array([a for t in GOLDEN for a in t["results"]["tree_traj/average/keep"]["pre"]])
    token_counts = [sum(lengths) for tree in GOLDEN for lengths in tree["segment_lengths"]]
    actual = advantages(golden_forest(GOLDEN), rewards_of(GOLDEN))
    assert_golden(actual, whitened_token_by_token(pre, token_counts))


def test_shared_tokens_count_once_for_each_trajectory():
    expected = [sum(lengths) for tree in GOLDEN for lengths in tree["segment_lengths"]]
    np.testing.assert_array_equal(num_sampled_tokens(golden_forest(GOLDEN)), expected)


def test_given_tokens_have_no_weight():
    forest = core.Forest()
    add_tree(forest, ["t#1-0", "t#1-1"], [[2], [3]])
    path = forest.fork(0, 0, 5)
    forest.append_given(0, path, np.zeros(5, dtype=np.uint32))
    append(forest, 0, path, 1)
    np.testing.assert_array_equal(num_sampled_tokens(Forest(forest)), [2, 3, 3])


def test_a_fork_in_the_middle_of_a_segment_makes_a_group():
    forest = core.Forest()
    add_tree(forest, ["t#1-0", "t#1-1"], [[4], [4]])
    append(forest, 0, forest.fork(0, 1, 5), 2)
    # leaves 1 and 2 share two tokens: for leaf 1 the mean of 1 - 1/3 and 1 - 1/2
    actual = minus_ancestors(Forest(forest), np.array([0.0, 1.0, 0.0]), AncestorGroups())
    np.testing.assert_allclose(actual, [-1 / 3, 7 / 12, -5 / 12])


def by_explicit_groups(forest, rewards):
    """Mean of a reward's differences to its ancestor groups, from whole token sequences."""
    paths = [forest.token_index(path).tolist() for path in range(forest.num_paths)]
    forked = np.flatnonzero(forest.paths.parent >= 0)
    ends = {paths[path][forest.paths.at[path] - 1] for path in forked}
    marks = zip(forest.marks.path, forest.marks.pos, strict=True)
    ends |= {paths[path][pos - 1] for path, pos in marks} | {tokens[-1] for tokens in paths}
    values = np.zeros(forest.num_paths)
    for path in np.flatnonzero(~np.isnan(rewards)):
        root = forest.trees.prompt_len[forest.paths.tree[path]] - 1
        differences = []
        for place, token in enumerate(paths[path]):
            group = [k for k, tokens in enumerate(paths) if tokens[place : place + 1] == [token]]
            mean = np.nanmean(rewards[group]) if len(group) > 1 else 0.0
            is_group = place > root and token in ends and (~np.isnan(rewards[group])).sum() > 1
            if place == root or is_group:
                differences.append(rewards[path] - mean)
        values[path] = np.mean(differences)
    return values


@pytest.mark.parametrize("seed", range(15))
def test_the_mean_over_groups_is_that_of_groups_made_one_by_one(grow_forest, seed):
    rng = np.random.default_rng(seed)
    forest = grow_forest(seed, vocab=50, num_paths=int(rng.integers(1, 9)))
    rewards = rng.choice([0.0, 0.5, 1.0, np.nan], forest.num_paths)
    actual = minus_ancestors(forest, rewards, AncestorGroups())
    np.testing.assert_allclose(actual, by_explicit_groups(forest, rewards), atol=1e-12)


def test_a_trajectory_without_a_reward_is_in_no_group():
    paths = ["t#1-0#2-0", "t#1-0#2-1", "t#1-1#2-2", "t#1-1#2-3"]
    with_it, without_it = core.Forest(), core.Forest()
    add_tree(with_it, paths, [[4, 4]] * 4)
    add_tree(without_it, paths[:3], [[4, 4]] * 3)
    expected = advantages(Forest(without_it), np.array([1.0, 0.0, 0.5]))
    actual = advantages(Forest(with_it), np.array([1.0, 0.0, 0.5, np.nan]))
    np.testing.assert_allclose(actual, [*expected, 0.0])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_forest_without_any_reward_has_no_advantage(preset):
    actual = advantages(flat_forest([2, 3]), np.full(5, np.nan), preset)
    np.testing.assert_array_equal(actual, np.zeros(5))


def test_the_only_scored_trajectory_among_several_has_no_advantage():
    actual = advantages(flat_forest([2]), np.array([1.0, np.nan]), "grpo")
    np.testing.assert_array_equal(actual, [0.0, 0.0])


def test_the_only_trajectory_of_a_tree_keeps_its_reward():
    rewards = np.array([0.25, 1.0, 0.0])
    actual = minus_ancestors(flat_forest([1, 2]), rewards, AncestorGroups())
    np.testing.assert_allclose(actual, [0.25, 0.5, -0.5])
    actual = advantages(flat_forest([1, 2]), rewards, "grpo")
    np.testing.assert_allclose(actual[0], 0.25, rtol=1e-5)


def test_equal_rewards_have_no_advantage():
    np.testing.assert_allclose(advantages(flat_forest([3]), np.full(3, 0.3)), 0, atol=1e-9)


@pytest.mark.parametrize("preset", PRESETS)
def test_equal_rewards_of_any_size_have_no_advantage_in_a_large_forest(preset):
    small = flat_forest([3] * 50)
    forest = Forest.concatenate([small] * 40)
    rewards = np.repeat(np.linspace(1e4, 1e5, forest.num_trees), 3)
    actual = advantages(forest, rewards, preset)
    assert np.abs(actual).max() < 1e-6


def test_whitened_values_have_mean_0_and_variance_1_over_tokens():
    token_counts = np.array([5, 1, 9])
    tokens = np.repeat(whiten(np.array([1.0, -2.0, 0.5]), token_counts), token_counts)
    np.testing.assert_allclose([tokens.mean(), tokens.var(ddof=1)], [0, 1], atol=1e-6)


def test_a_trajectory_without_tokens_is_not_whitened():
    actual = whiten(np.array([1.0, 0.0, 7.0]), np.array([2, 2, 0]))
    np.testing.assert_allclose(actual, [*whiten(np.array([1.0, 0.0]), np.array([2, 2])), 0.0])


def test_a_wrong_number_of_rewards_is_refused():
    with pytest.raises(InvalidInputError, match=r"shape \(3,\), expected \(2,\)"):
        advantages(flat_forest([2]), np.zeros(3))


def test_an_infinite_reward_is_refused():
    with pytest.raises(InvalidInputError, match="reward of path 1 is infinite"):
        advantages(flat_forest([2]), np.array([0.0, np.inf]))


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InvalidConfigError, match="'trepo', did you mean treepo"):
        advantages(flat_forest([2]), np.zeros(2), "trepo")


def test_time_does_not_grow_with_depth_times_leaves():
    # one stem of 20000 segments and a leaf at each of its ends: 2e8 pairs of a leaf and an ancestor
    num_segments = 20_000
    forest = core.Forest()
    tree = forest.add_tree(0, np.zeros(1, dtype=np.uint32))
    for _ in range(num_segments):
        append(forest, tree, 0, 1)
        forest.mark(tree, 0)
    for at in range(1, num_segments):
        append(forest, tree, forest.fork(tree, 0, at), 1)
    rewards = np.arange(num_segments) % 2.0
    actual = minus_ancestors(Forest(forest), rewards, AncestorGroups())
    assert np.isfinite(actual).all()
    # the deepest pair is compared in every group; the mean of the groups' means is near one half
    np.testing.assert_allclose(np.abs(actual[-2:]), 0.5, atol=0.01)
