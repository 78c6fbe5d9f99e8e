"""The truth lab: its truth against brute force, and what it concludes about estimators."""

import ast
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from treepo import core
from treepo.advantages import PRESETS, credit
from treepo.errors import InvalidInputError
from treepo.lab import (
    SEARCHES,
    TabularPolicy,
    compare,
    gradients,
    grow,
    quality,
    random_policy,
    solve,
    spring,
)
from treepo.lab import exact as exact_module

EVEN = core.SearchConfig(**SEARCHES["even"], eos_token_ids=[0])
FLAT = core.SearchConfig(**SEARCHES["flat"], eos_token_ids=[0])


def sequences(policy):
    """Every sequence: its (state, token) steps and the state that it ends in."""
    for length in range(policy.depth + 1):
        for body in itertools.product(range(1, policy.arity + 1), repeat=length):
            steps, state = [], 0
            for token in body:
                steps.append((state, token))
                state = policy.arity * state + token
            if length < policy.depth:
                yield [*steps, (state, 0)], state
            else:
                yield steps, state


def objective(policy):
    logprobs = policy.log_probs()
    return np.mean(
        [
            sum(
                np.exp(sum(logprobs[prompt, state, token] for state, token in steps))
                * policy.rewards[prompt, end]
                for steps, end in sequences(policy)
            )
            for prompt in range(policy.num_prompts)
        ]
    )


def test_the_exact_gradient_is_that_of_the_sum_over_all_sequences():
    policy = random_policy(3, depth=3, values=(0.3, 0.6))
    truth = solve(policy)
    assert truth.objective == pytest.approx(objective(policy), abs=1e-12)
    step = 1e-5
    for place in np.ndindex(policy.logits.shape):
        moved = []
        for sign in (1, -1):
            logits = policy.logits.copy()
            logits[place] += sign * step
            moved.append(objective(replace(policy, logits=logits)))
        slope = (moved[0] - moved[1]) / (2 * step)
        assert truth.gradient[place] == pytest.approx(slope, abs=1e-8)


def test_the_truth_shares_no_code_with_the_estimators():
    folder = Path(exact_module.__file__).parent
    for name in ("exact.py", "policy.py"):
        for node in ast.walk(ast.parse((folder / name).read_text())):
            imported = [node.module] if isinstance(node, ast.ImportFrom) else []
            imported += [x.name for x in node.names] if isinstance(node, ast.Import) else []
            assert not any("advantages" in module for module in imported)


@pytest.mark.parametrize("search", [EVEN, FLAT])
def test_tokens_carry_the_state_they_were_drawn_in(search):
    policy = random_policy(1)
    sampled = grow(policy, search, 30, seed=5)
    forest = sampled.forest
    drawn = sampled.state >= 0
    expected = policy.log_probs()[sampled.prompt[drawn], sampled.state[drawn], sampled.token[drawn]]
    np.testing.assert_allclose(forest.tokens.logprob[drawn], expected, rtol=1e-6)
    for path in range(forest.num_paths):
        state = 0
        for token in forest.completion_ids(path):
            if token:
                state = policy.arity * state + int(token)
        prompt = forest.paths.tree[path] % policy.num_prompts
        assert sampled.rewards[path] == policy.rewards[prompt, state]


def test_the_estimate_is_the_sum_over_trajectories_of_advantage_times_score():
    policy = random_policy(2)
    sampled = grow(policy, EVEN, 6, seed=1)
    credited = credit(sampled.forest, sampled.rewards, "rloo")
    weights = sampled.forest.paths.weight.astype(np.float64)
    actual = gradients(policy, sampled, credited, weights, 6)[0].reshape(policy.logits.shape)
    expected = np.zeros(policy.logits.shape)
    probs = np.exp(policy.log_probs())
    for path in range(sampled.forest.num_paths):
        tree = sampled.forest.paths.tree == sampled.forest.paths.tree[path]
        share = weights[path] / weights[tree].sum() / 6
        for token in sampled.forest.token_index(path)[1:]:
            place = sampled.prompt[token], sampled.state[token]
            score = -probs[place]
            score[sampled.token[token]] += 1
            expected[place] += share * credited.values[path] * score
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_an_unbiased_estimate_has_an_interval_with_0_and_a_biased_one_has_not():
    rng = np.random.default_rng(0)
    truth, astray = rng.normal(size=50), rng.normal(size=50)
    noise = rng.normal(size=(4000, 50)) * 3
    good = quality(2 * truth + noise, truth, 10.0)
    bad = quality(2 * truth + astray + noise, truth, 10.0)
    assert good.scale == pytest.approx(2, abs=0.05)
    assert good.bias_low == 0
    across = astray - truth * (astray @ truth) / (truth @ truth)
    fitted = 2 * truth + astray - across
    expected = np.linalg.norm(across) / np.linalg.norm(fitted)
    assert bad.bias_low < expected < bad.bias_high
    assert good.variance == pytest.approx(9 * 50 / (4 * truth @ truth), rel=0.1)


@pytest.mark.parametrize("policy", [random_policy(depth=8), random_policy(values=(0.5,) * 5)])
def test_a_policy_that_does_not_fit_the_searches_is_refused(policy):
    with pytest.raises(InvalidInputError, match="take depth=6 and a number of prompts that"):
        next(compare(40, policy=policy))


@pytest.fixture(scope="module")
def rows():
    presets = ("tree_rloo", "rloo", "grpo", "treerl", "spo_tree", "treepo")
    searches = ("flat", "even", "fallback", "token_surprisal", "prune")
    found = compare(400, searches=searches, presets=presets)
    return {(row.search, row.preset, row.is_weighted): row.quality for row in found}


@pytest.mark.parametrize("preset", ["tree_rloo", "rloo", "grpo", "treerl", "spo_tree", "treepo"])
def test_on_independent_answers_every_preset_points_along_the_gradient(rows, preset):
    found = rows["flat", preset, preset == "tree_rloo"]
    assert found.bias_low == 0
    assert found.bias < 0.03


@pytest.mark.parametrize("preset", ["rloo", "grpo", "treerl", "spo_tree", "treepo"])
def test_on_trees_leaves_that_count_alike_bias_it_and_weights_undo_a_part(rows, preset):
    plain, weighted = rows["even", preset, False], rows["even", preset, True]
    assert plain.bias_low > 0.4
    assert weighted.bias_low > 0.15
    assert weighted.bias_high < plain.bias_low


def test_on_trees_tree_rloo_is_unbiased_in_direction_and_length(rows):
    found = rows["even", "tree_rloo", True]
    assert found.bias_low == 0
    assert found.bias_high < 0.12
    assert found.scale == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("search", ["fallback", "token_surprisal", "prune"])
def test_forks_that_depend_on_what_is_behind_them_bias_every_preset(rows, search):
    for (name, _, _), found in rows.items():
        if name == search:
            assert found.bias_low > 0.05


@pytest.mark.parametrize(("siblings", "expected"), [(1, 0.45), (2, 0.6), (4, 0.72)])
def test_forks_at_surprising_tokens_turn_a_value_of_0_9_into_less(siblings, expected):
    found = spring("token_surprisal", siblings, 6000)
    assert abs(found.estimate - expected) < max(found.half_width, 0.01) * 1.5
    fair = spring("token_entropy", siblings, 3000)
    assert fair.num_forks == 3000
    assert abs(fair.estimate - 0.9) < 2 * fair.half_width


def test_a_table_that_does_not_fit_is_refused():
    policy = random_policy(0, depth=2)
    with pytest.raises(core.InvalidInputError, match="rows of logits"):
        TabularPolicy(policy.logits[:, :2], policy.rewards, 2)
    with pytest.raises(core.InvalidInputError, match="rewards have shape"):
        TabularPolicy(policy.logits, policy.rewards[:, :3], 2)


def test_every_preset_is_measured_under_every_search():
    rows = list(compare(40))
    assert {(row.search, row.preset) for row in rows} == set(itertools.product(SEARCHES, PRESETS))
