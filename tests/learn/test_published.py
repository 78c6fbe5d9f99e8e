"""Presets against numbers of the published code of their papers: golden/published.json."""

from dataclasses import replace

import numpy as np
import pytest
from trees import PUBLISHED, assert_golden, golden_forest, nodes_of, rewards_of

from treepo.advantages import PRESETS, Backup, Baseline, Level, Preset, Scale, credit

by_tree = pytest.mark.parametrize("tree", PUBLISHED["trees"], ids=lambda tree: tree["id"])
OF_NODES = {
    "attnrl": PRESETS["treerl"],
    "spo/rloo": PRESETS["spo_tree"],
    "spo/grpo": replace(PRESETS["spo_tree"], scale=Scale.SIBLING_STD),
    "at2po": PRESETS["at2po"],
    "branchgrpo/path_weighted": PRESETS["branchgrpo"],
    "branchgrpo/leaf_mean": replace(PRESETS["branchgrpo"], backup=Backup.LEAF_MEAN),
    "vineppo": PRESETS["vineppo"],
}
# U(s) = V(s) - V(root), whose scale is part of what the code of TreeRL compares.
OF_TREERL = {"treerl/plain": Scale.NONE, "treerl/script": Scale.SQRT_LEAVES}


def cases(sources):
    """Pairs of a source and a tree; some code refuses a tree of one leaf."""
    return [
        pytest.param(source, tree, id=f"{source}-{tree['id']}")
        for source in sources
        for tree in PUBLISHED["trees"]
        if tree["results"][source] is not None
    ]


def numbers_of(tree, source):
    """Numbers of each leaf, 0 for what is not trained on."""
    return [[x or 0.0 for x in leaf] for leaf in tree["results"][source]]


def assert_nodes(tree, preset, expected):
    forest = golden_forest([tree])
    values = credit(forest, rewards_of([tree]), preset).values
    for path, numbers in enumerate(expected):
        assert_golden(values[nodes_of(forest, path)], numbers)


def test_all_sources_are_compared():
    compared = {*OF_NODES, *OF_TREERL, "tree_grpo"}
    assert compared == set(PUBLISHED["sources"])
    assert all(compared == set(tree["results"]) for tree in PUBLISHED["trees"])


@pytest.mark.parametrize(("source", "tree"), cases(OF_NODES))
def test_nodes_have_the_advantages_of_the_published_code(source, tree):
    assert_nodes(tree, OF_NODES[source], numbers_of(tree, source))


@by_tree
def test_treerpo_is_the_option_grpo_of_the_published_code_of_spo(tree):
    assert_nodes(tree, PRESETS["treerpo"], numbers_of(tree, "spo/grpo"))


def is_alone_in_branch(tree):
    branches = [name.split("#")[1] for name in tree["paths"]]
    return np.array([branches.count(branch) == 1 for branch in branches])


@by_tree
def test_tree_grpo_is_the_published_code_but_for_leaves_alone_in_their_branch(tree):
    rewards = rewards_of([tree])
    actual = credit(golden_forest([tree]), rewards, "tree_grpo").values
    # The code compares a group of one with 0, so that its leaf has its reward once more.
    once_more = np.where(is_alone_in_branch(tree), rewards, 0.0)
    assert_golden(actual + once_more, tree["results"]["tree_grpo"])


def carried_over(differences):
    """Differences from the root down, those of 0 as the one before."""
    found = list(differences)
    for k in range(1, len(found)):
        found[k] = found[k - 1] if abs(found[k]) < 1e-8 else found[k]
    return np.array(found)


@pytest.mark.parametrize(("source", "tree"), cases(OF_TREERL))
def test_the_code_of_treerl_scales_the_parent_by_its_own_leaves(source, tree):
    expected = numbers_of(tree, source)
    forest, num_leaves = golden_forest([tree]), len(expected)
    preset = Preset(
        formula="U(s)",
        source="the test",
        level=Level.NODE,
        baselines=(Baseline.ROOT,),
        scale=OF_TREERL[source],
    )
    above_root = credit(forest, rewards_of([tree]), preset).values
    for path, numbers in enumerate(expected):
        own = above_root[nodes_of(forest, path)]
        local = carried_over(np.diff(own, prepend=0.0))
        # The other leaves alone are the baseline of a leaf.
        assert_golden(num_leaves / (num_leaves - 1) * (own + local), numbers)


def test_the_code_of_treerl_is_not_its_paper_even_up_to_the_baseline_of_the_others():
    tree = next(tree for tree in PUBLISHED["trees"] if len(tree["paths"]) == 8)
    forest, expected = golden_forest([tree]), numbers_of(tree, "treerl/script")
    values = credit(forest, rewards_of([tree]), "treerl").values
    actual = np.concatenate([values[nodes_of(forest, path)] for path in range(8)])
    assert np.abs(8 / 7 * actual - np.concatenate(expected)).max() > 0.1
