"""Presets: golden where the published code exists, else against sums made one by one."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from trees import (
    GOLDEN,
    add_tree,
    append,
    assert_golden,
    flat_forest,
    golden_forest,
    nodes_of,
    rewards_of,
)

from treepo import core
from treepo.advantages import (
    PRESETS,
    Backup,
    Baseline,
    Counting,
    Level,
    Multiplicity,
    Preset,
    Scale,
    advantages,
    credit,
)
from treepo.advantages.backup import DECAY, node_values
from treepo.advantages.nodes import num_ancestors
from treepo.errors import InvalidConfigError
from treepo.forest import Forest, TokenKind
from treepo.lab import SEARCHES, grow, random_policy

by_tree = pytest.mark.parametrize("tree", GOLDEN, ids=[tree["id"] for tree in GOLDEN])
OF_TRAJECTORIES = {
    "treepo": "tree_traj/average/keep",
    "treepo_size_weighted": "tree_traj/group_size/keep",
    "treepo_with_rejection": "tree_traj/group_size/rm_no_std",
    "grpo": "grpo/std",
    "dr_grpo": "grpo/no_std",
    "rloo": "rloo",
    "reinforce_plus_plus": "rfpp_baseline",
}
OF_NODES = {
    "treepo_segment": "tree_segment/eta=-1",
    "treepo_segment_faded": "tree_segment/eta=0.5",
    "treepo_spo": "spo",
}
NODE_PRESETS = [name for name, preset in PRESETS.items() if preset.level is Level.NODE]
# The last leaf is among siblings of which one, or two, are others.
WITH_A_MISSING_LEAF = [
    (["t#1-0#2-0", "t#1-0#2-1", "t#1-1#2-2", "t#1-1#2-3"], [1.0, 0.0, 0.5, np.nan]),
    (
        ["t#1-0#2-0", "t#1-0#2-1", "t#1-1#2-2", "t#1-1#2-3", "t#1-1#2-4"],
        [1.0, 0.75, 0.5, 0.25, np.nan],
    ),
]


def entries(forest):
    """Trajectory and token of every sampled token of every trajectory."""
    paths, tokens = [], []
    for path in range(forest.num_paths):
        index = forest.token_index(path)
        index = index[forest.tokens.kind[index] == TokenKind.SAMPLED]
        paths.append(np.full(len(index), path))
        tokens.append(index)
    return np.concatenate(paths), np.concatenate(tokens)


def random_case(grow_forest, seed, missing=0.0):
    rng = np.random.default_rng(seed)
    forest = grow_forest(seed, vocab=50, num_paths=int(rng.integers(2, 10)))
    rewards = rng.choice([0.0, 0.25, 1.0], forest.num_paths)
    rewards[rng.random(forest.num_paths) < missing] = np.nan
    return forest, rewards


@by_tree
@pytest.mark.parametrize("preset", OF_TRAJECTORIES)
def test_trajectories_have_the_advantages_of_the_published_code(tree, preset):
    results = tree["results"][OF_TRAJECTORIES[preset]]
    forest, rewards = golden_forest([tree]), rewards_of([tree])
    assert_golden(credit(forest, rewards, preset).values, results["post"])
    if PRESETS[preset].scale is Scale.BATCH_TOKENS:
        unscaled = replace(PRESETS[preset], scale=Scale.NONE)
        assert_golden(credit(forest, rewards, unscaled).values, results["pre"])


@by_tree
@pytest.mark.parametrize("preset", OF_NODES)
def test_nodes_have_the_advantages_of_the_published_code(tree, preset):
    forest, rewards = golden_forest([tree]), rewards_of([tree])
    credited = credit(forest, rewards, preset)
    for path, expected in enumerate(tree["results"][OF_NODES[preset]]["post"]):
        first = forest.nodes().token_start[nodes_of(forest, path)]
        values, _ = credited.at(forest, np.full(len(first), path), first)
        assert_golden(values, expected)


def test_a_token_level_credit_of_some_trees_is_theirs(grow_forest):
    forest, rewards = random_case(grow_forest, 3)
    preset = replace(PRESETS["treepo_segment_faded"], scale=Scale.NONE)
    whole = credit(forest, rewards, preset)
    trees = np.arange(forest.num_trees)[::-1]
    chosen = forest.select(trees)
    paths = np.concatenate([np.flatnonzero(forest.paths.tree == tree) for tree in trees])
    expected = credit(chosen, rewards[paths], preset)
    np.testing.assert_allclose(whole.of_trees(forest, trees).values, expected.values)
    means = whole.of_trajectories(forest)[paths]
    np.testing.assert_allclose(expected.of_trajectories(chosen), means)


def test_parts_of_another_level_are_refused_at_the_token_level():
    preset = replace(PRESETS["treepo_segment_faded"], baselines=(Baseline.ROOT,))
    with pytest.raises(InvalidConfigError, match="level token goes with"):
        credit(flat_forest([2]), np.zeros(2), preset)


def test_rejection_with_equal_weights_is_that_of_the_published_code():
    preset = replace(
        PRESETS["treepo"],
        scale=Scale.NONE,
        ancestors=replace(PRESETS["treepo"].ancestors, has_uniform=False),
    )
    for tree in GOLDEN:
        actual = advantages(golden_forest([tree]), rewards_of([tree]), preset)
        assert_golden(actual, tree["results"]["tree_traj/average/rm_no_std"]["pre"])


class Slow:
    """Values of nodes from lists of children, one node at a time."""

    def __init__(self, forest, leaves, backup):
        self.nodes = forest.nodes()
        self.leaves = leaves
        self.backup = backup
        self.tokens = forest.tokens
        self.known = {}

    def children(self, node):
        return [int(k) for k in np.flatnonzero(self.nodes.parent == node)]

    def own_leaves(self, node):
        return [r for r, at in zip(self.leaves, self.nodes.leaf, strict=True) if at == node]

    def below(self, node):
        """Rewards below a node and how many nodes deeper each of them is."""
        found = [(reward, 0) for reward in self.own_leaves(node)]
        for child in self.children(node):
            found += [(reward, depth + 1) for reward, depth in self.below(child)]
        return found

    def logprob(self, node):
        start = self.nodes.token_start[node]
        logprob = self.tokens.logprob[start : start + self.nodes.end[node] - self.nodes.start[node]]
        return np.nansum(logprob, dtype=np.float64)  # A given token has none.

    def value(self, node):
        if node not in self.known:
            self.known[node] = self.worked_out(node)
        return self.known[node]

    def worked_out(self, node):
        below = [(r, depth) for r, depth in self.below(node) if not np.isnan(r)]
        if not below:
            return np.nan
        if self.backup is Backup.LEAF_MEAN:
            return np.mean([r for r, _ in below])
        if self.backup is Backup.DECAYED:
            return np.mean([r * DECAY**depth for r, depth in below])
        own = [r for r in self.own_leaves(node) if not np.isnan(r)]
        children = [k for k in self.children(node) if not np.isnan(self.value(k))]
        values = [self.value(k) for k in children]
        weights = [1.0] * len(children)
        if self.backup is Backup.CHILD_SOFTMAX:
            best = max((self.logprob(k) for k in children), default=0.0)
            weights = [np.exp(self.logprob(k) - best) for k in children]
        return np.average(values + own, weights=weights + [1.0] * len(own))

    def baseline(self, node, baseline):
        parent = self.nodes.parent[node]
        above = []
        while parent >= 0:
            above.append(int(parent))
            parent = self.nodes.parent[parent]
        if baseline is Baseline.NOTHING:
            return 0.0
        if baseline is Baseline.LEAVE_ONE_OUT:
            below, everywhere = self.below(node), self.below(above[-1])
            rest = np.nansum([r for r, _ in everywhere]) - np.nansum([r for r, _ in below])
            count = sum(not np.isnan(r) for r, _ in everywhere)
            count -= sum(not np.isnan(r) for r, _ in below)
            return rest / count if count else np.nan
        compared = {
            Baseline.ROOT: above[-1:],
            Baseline.PARENT: above[:1],
            Baseline.SIBLINGS: self.children(above[0]),
            Baseline.ANCESTORS: above,
        }[baseline]
        values = [self.value(k) for k in compared]
        return np.mean([x for x in values if not np.isnan(x)] or [np.nan])


def node_preset(backup, baseline):
    return Preset(formula="", source="", level=Level.NODE, backup=backup, baselines=(baseline,))


@pytest.mark.parametrize("backup", Backup)
@pytest.mark.parametrize("baseline", Baseline)
def test_values_and_baselines_of_nodes_are_those_made_one_by_one(grow_forest, backup, baseline):
    for seed in range(6):
        forest, rewards = random_case(grow_forest, seed, missing=0.2 * (seed % 2))
        slow = Slow(forest, rewards, backup)
        values = node_values(forest, rewards, backup, np.ones(forest.num_paths))
        actual = credit(forest, rewards, node_preset(backup, baseline)).values
        for node in range(len(values)):
            np.testing.assert_allclose(values[node], slow.value(node), atol=1e-12)
            if forest.nodes().parent[node] >= 0:
                expected = np.nan_to_num(slow.value(node) - slow.baseline(node, baseline))
                np.testing.assert_allclose(actual[node], expected, atol=1e-12)


def test_leaf_mean_and_child_mean_disagree_on_an_uneven_tree():
    # root with child a (leaf 1) and child b (leaves 0, 0, 1)
    forest = core.Forest()
    paths = ["t#1-0", "t#1-1#2-0", "t#1-1#2-1", "t#1-1#2-2"]
    add_tree(forest, paths, [[2], [2, 2], [2, 2], [2, 2]])
    rewards = np.array([1.0, 0.0, 0.0, 1.0])
    leaf, child = (
        node_values(Forest(forest), rewards, backup, np.ones(4))[0]
        for backup in (Backup.LEAF_MEAN, Backup.CHILD_MEAN)
    )
    assert leaf == pytest.approx(0.5)
    assert child == pytest.approx(2 / 3)


def test_treerl_adds_the_differences_to_root_and_parent_over_the_root_of_leaves():
    forest = core.Forest()
    paths = ["t#1-0#2-0", "t#1-0#2-1", "t#1-1#2-2", "t#1-1#2-3"]
    add_tree(forest, paths, [[1, 1]] * 4)
    values = credit(Forest(forest), np.array([1.0, 1.0, 1.0, 0.0]), "treerl").values
    own = nodes_of(Forest(forest), 0)
    np.testing.assert_allclose(values[own], [(0.25 + 0.25) / np.sqrt(2), 0.25 + 0.0])


def test_tree_grpo_adds_the_scores_in_tree_and_branch():
    forest = core.Forest()
    paths = ["t#1-0#2-0", "t#1-0#2-1", "t#1-1#2-2", "t#1-1#2-3"]
    add_tree(forest, paths, [[1, 1]] * 4)
    rewards = np.array([1.0, 0.0, 1.0, 1.0])
    tree, branch = np.std(rewards, ddof=1), np.std(rewards[:2], ddof=1)
    expected = (rewards - 0.75) / tree + np.array([0.5, -0.5, 0, 0]) / branch
    np.testing.assert_allclose(credit(Forest(forest), rewards, "tree_grpo").values, expected, 1e-5)


def test_branchgrpo_has_mean_0_and_variance_1_at_each_depth(grow_forest):
    forest, rewards = random_case(grow_forest, 3)
    nodes, values = forest.nodes(), credit(forest, rewards, "branchgrpo").values
    level = num_ancestors(nodes)
    for tree in range(forest.num_trees):
        for depth in range(int(level.max()) + 1):
            own = values[(nodes.tree == tree) & (level == depth)]
            if own.any():
                np.testing.assert_allclose([own.mean(), own.std(ddof=1)], [0, 1], atol=1e-3)


def test_without_the_root_a_leaf_without_groups_has_no_advantage():
    preset = replace(PRESETS["treepo_without_root"], scale=Scale.NONE)
    forest = core.Forest()
    add_tree(forest, ["t#1-0", "t#1-1#2-0", "t#1-1#2-1"], [[2], [2, 2], [2, 2]])
    actual = advantages(Forest(forest), np.array([1.0, 1.0, 0.0]), preset)
    np.testing.assert_allclose(actual, [0.0, 0.5, -0.5])


def test_no_two_presets_are_equal_unless_they_say_so(grow_forest):
    def table(preset):
        found = []
        for seed in range(100):
            forest, rewards = random_case(grow_forest, seed)
            values, weights = credit(forest, rewards, preset).at(forest, *entries(forest))
            found.append(values * weights)
        return np.concatenate(found)

    tables = {name: table(name) for name in PRESETS}
    for one, other in combinations(PRESETS, 2):
        is_alias = one == PRESETS[other].alias_of or other == PRESETS[one].alias_of
        assert np.allclose(tables[one], tables[other], atol=1e-9) == is_alias, (one, other)


# By design short trajectories are better ones where rewards fade towards the root, and treepo_spo
# gives only children their parent's value.
@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"deepsearch", "treepo_spo"}))
def test_equal_rewards_teach_nothing(preset):
    forest = golden_forest(GOLDEN)
    credited = credit(forest, np.full(forest.num_paths, 0.3), preset)
    values, _ = credited.at(forest, *entries(forest))
    # Whitening divides rounding by 1e-4 at least.
    assert np.abs(values).max() < 1e-6


@pytest.mark.parametrize("preset", PRESETS)
def test_a_forest_without_any_reward_has_no_advantage(preset):
    actual = credit(flat_forest([2, 3]), np.full(5, np.nan), preset).values
    assert not actual.any()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("paths", "rewards"), WITH_A_MISSING_LEAF, ids=["pair", "three"])
def test_a_leaf_without_a_reward_is_no_sibling_and_has_no_advantage(preset, paths, rewards):
    lengths = [[2, 3 + leaf % 2] for leaf in range(len(paths))]
    found = []
    for count in (len(paths), len(paths) - 1):
        grown = core.Forest()
        add_tree(grown, paths[:count], lengths[:count])
        forest = Forest(grown)
        path, token = entries(forest)
        credited = credit(forest, np.array(rewards[:count]), preset)
        found.append((path, credited.at(forest, path, token)[0], credited.of_trajectories(forest)))
    (path, values, means), (_, expected, expected_means) = found
    is_missing = path == len(paths) - 1
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(values[~is_missing], expected, atol=1e-12)
    np.testing.assert_allclose(means[:-1], expected_means, atol=1e-12)
    assert not values[is_missing].any()
    assert means[-1] == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_tokens_read_in_a_trajectory_without_a_reward_have_no_advantage(grow_forest, preset):
    forest, rewards = random_case(grow_forest, 8, missing=0.4)
    path, token = entries(forest)
    values, _ = credit(forest, rewards, preset).at(forest, path, token)
    is_missing = np.isnan(rewards)
    is_shared_with_a_scored_one = np.isin(token, token[~is_missing[path] & (values != 0)])
    assert (is_missing[path] & is_shared_with_a_scored_one).any()
    assert not values[is_missing[path]].any()
    assert not advantages(forest, rewards, preset)[is_missing].any()


@pytest.mark.parametrize("preset", sorted({*NODE_PRESETS, "treepo_segment_faded"}))
def test_a_trajectory_has_the_mean_over_its_sampled_tokens_alone(grow_forest, preset):
    forest, rewards = random_case(grow_forest, 2)
    path, token = entries(forest)
    num_given = (forest.tokens.kind == TokenKind.GIVEN).sum()
    assert num_given > 3
    values, _ = credit(forest, rewards, preset).at(forest, path, token)
    count = np.bincount(path, minlength=forest.num_paths)
    total = np.bincount(path, values, minlength=forest.num_paths)
    found = advantages(forest, rewards, preset)
    np.testing.assert_allclose(found, total / np.maximum(count, 1), atol=1e-12)


@pytest.mark.parametrize("preset", NODE_PRESETS)
def test_a_shared_token_has_one_advantage_in_all_its_trajectories(grow_forest, preset):
    forest, rewards = random_case(grow_forest, 8)
    path, token = entries(forest)
    values, _ = credit(forest, rewards, preset).at(forest, path, token)
    for one in np.unique(token):
        assert len(np.unique(values[token == one])) == 1


@pytest.mark.parametrize("multiplicity", Multiplicity)
def test_weights_of_a_shared_token_add_up(grow_forest, multiplicity):
    forest, rewards = random_case(grow_forest, 9)
    path, token = entries(forest)
    preset = replace(PRESETS["vineppo"], multiplicity=multiplicity)
    _, weights = credit(forest, rewards, preset).at(forest, path, token)
    for one in np.unique(token):
        own = weights[token == one]
        expected = {"every_trajectory": len(own), "once": 1.0, "sqrt": np.sqrt(len(own))}
        assert own.sum() == pytest.approx(expected[multiplicity.value])


def test_shared_tokens_that_count_once_do_so_in_the_scored_trajectories(grow_forest):
    forest, rewards = random_case(grow_forest, 8, missing=0.4)
    path, token = entries(forest)
    _, weights = credit(forest, rewards, "spo_tree").at(forest, path, token)
    is_scored = ~np.isnan(rewards)[path]
    totals = np.bincount(token[is_scored], weights[is_scored])
    assert (np.bincount(token[is_scored]) > 1).any()
    np.testing.assert_allclose(totals[totals > 0], 1.0)


def test_by_inclusion_leaves_count_in_means_and_tokens_by_their_weights():
    search = core.SearchConfig(**SEARCHES["even"], eos_token_ids=[0])
    sampled = grow(random_policy(4), search, 20, seed=3)
    forest, rewards = sampled.forest, sampled.rewards.copy()
    rewards[::7] = np.nan
    nodes, weight = forest.nodes(), forest.paths.weight.astype(np.float64)
    assert len(np.unique(weight)) > 3
    found = credit(forest, rewards, "tree_rloo")
    for node in np.flatnonzero(nodes.parent >= 0):
        in_tree = forest.paths.tree == nodes.tree[node]
        below = (nodes.leaf >= node) & (nodes.leaf < nodes.subtree_end[node])
        known = ~np.isnan(rewards)
        own, rest = below & known, in_tree & ~below & known
        expected = 0.0
        if own.any() and rest.any():
            expected = np.average(rewards[own], weights=weight[own])
            expected -= np.average(rewards[rest], weights=weight[rest])
        assert found.values[node] == pytest.approx(expected, abs=1e-9)
        assert found.weights[node] * own.sum() == pytest.approx(weight[own].sum())


def test_a_trajectory_has_the_mean_over_its_tokens():
    forest = core.Forest()
    add_tree(forest, ["t#1-0#2-0", "t#1-0#2-1"], [[3, 1], [3, 2]])
    rewards = np.array([1.0, 0.0])
    values = credit(Forest(forest), rewards, "vineppo").values
    expected = [(3 * values[1] + values[2]) / 4, (3 * values[1] + 2 * values[3]) / 5]
    np.testing.assert_allclose(advantages(Forest(forest), rewards, "vineppo"), expected)


def test_a_trajectory_that_ends_where_another_goes_on_is_a_child_of_its_end():
    forest = core.Forest()
    add_tree(forest, ["t#1-0"], [[2]])
    append(forest, 0, forest.fork(0, 0, 5), 2)
    append(forest, 0, forest.fork(0, 0, 5), 2)
    values = node_values(Forest(forest), np.array([1.0, 0.0, 0.0]), Backup.CHILD_MEAN, np.ones(3))
    assert values[1] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"baselines": (Baseline.PARENT,)}, "a trajectory is not compared with its parent"),
        ({"baselines": (), "scale": Scale.SQRT_LEAVES}, "sqrt_leaves is one of nodes"),
        (
            {"baselines": (Baseline.PARENT,), "level": Level.NODE, "counting": Counting.INCLUSION},
            "counting by inclusion goes with",
        ),
        (
            {"baselines": (), "level": Level.NODE, "scale": Scale.GROUP_STD},
            "group_std is one of trajectories",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(InvalidConfigError, match=message):
        credit(flat_forest([2]), np.zeros(2), Preset(formula="", source="", **parts))


def test_the_docs_name_every_preset_with_its_formula():
    text = (Path(__file__).parents[2] / "docs/advantages.md").read_text()
    for name, preset in PRESETS.items():
        formula, source = (x.replace("|", "\\|") for x in (preset.formula, preset.source))
        assert f"| `{name}` | {preset.level.value} | {formula} |" in text
        assert f"| {source} |" in text
