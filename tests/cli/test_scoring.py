"""From completions to one reward a trajectory: several functions, and what they leave out."""

import numpy as np
import pytest

from treepo.config import EngineConfig, EvalConfig, RewardConfig, StopConfig
from treepo.engine import Engine
from treepo.engine.load import load_model
from treepo.evaluate import MAX_SCORED_AT_ONCE, evaluate
from treepo.scoring import Scorer

pytestmark = pytest.mark.usefixtures("single_thread")

ROWS = [{"prompt": f"{number}*7="} for number in range(10, 14)]


def one(completions, **columns):
    return [1.0] * len(completions)


def none_for_the_first_prompt(completions, prompts, **columns):
    return [None if prompt == ROWS[0]["prompt"] else 2.0 for prompt in prompts]


def fails_for_the_first_prompt(completions, prompts, **columns):
    if ROWS[0]["prompt"] in prompts:
        raise ValueError("not this prompt")
    return [2.0] * len(completions)


@pytest.fixture(scope="module")
def engine(tiny_model_dir):
    return Engine(*load_model(str(tiny_model_dir), EngineConfig()))


@pytest.fixture
def scores(engine):
    """Scores of two completions of each prompt by some functions."""
    forest = engine.generate([row["prompt"] for row in ROWS], n=2, max_tokens=3)

    def score(*functions):
        config = RewardConfig(num_workers=0)
        with Scorer(functions, config, engine.tokenizer, engine.eos_token_ids) as scorer:
            return scorer.score(forest, ROWS).values

    return score


def test_values_of_several_functions_are_added(scores):
    np.testing.assert_array_equal(scores(one, none_for_the_first_prompt), [1, 1] + [3] * 6)


def test_a_completion_that_no_function_judges_has_no_reward(scores):
    expected = [np.nan] * 2 + [2] * 6
    np.testing.assert_array_equal(scores(none_for_the_first_prompt), expected)


def test_a_function_that_fails_leaves_the_whole_reward_out(scores):
    expected = [np.nan] * 2 + [3] * 6
    np.testing.assert_array_equal(scores(one, fails_for_the_first_prompt), expected)


def test_a_batch_of_an_evaluation_that_fails_as_a_whole_does_not_end_it(engine):
    num_samples = MAX_SCORED_AT_ONCE // 2 + 1
    settings = EvalConfig(num_prompts=len(ROWS), num_samples=num_samples)
    config = RewardConfig(num_workers=0)
    functions = [fails_for_the_first_prompt]
    with Scorer(functions, config, engine.tokenizer, engine.eos_token_ids) as scorer:
        found = evaluate(engine, scorer, ROWS, settings, max_tokens=1)
    assert found.num_unscored == num_samples + 1
    assert found.accuracy == found.greedy_accuracy == 0.75


def test_completions_of_an_evaluation_end_where_they_are_told_to(engine):
    texts = []

    def keep(completions, **columns):
        texts.extend(completions)
        return one(completions)

    settings = EvalConfig(num_prompts=len(ROWS), num_samples=4)
    config = RewardConfig(num_workers=0)
    with Scorer(keep, config, engine.tokenizer, engine.eos_token_ids) as scorer:
        evaluate(engine, scorer, ROWS, settings, max_tokens=20)
        free, texts[:] = list(texts), []
        evaluate(engine, scorer, ROWS, settings, max_tokens=20, stop=StopConfig(strings=("1",)))
    assert len(texts) == len(free) == 4 * 4 + 4
    assert sum("1" in text[:-1] for text in free) > 2
    # A stop ends its own path: up to there the others' completions are the same.
    assert texts == [text[: text.find("1") + 1] or text for text in free]


def test_an_evaluation_is_scored_in_parts(engine):
    sizes = []

    def correct_for_some(completions, prompts, **columns):
        sizes.append(len(completions))
        return [float(prompt != ROWS[0]["prompt"]) for prompt in prompts]

    num_samples = MAX_SCORED_AT_ONCE // 2 + 1
    settings = EvalConfig(num_prompts=len(ROWS), num_samples=num_samples)
    config = RewardConfig(num_workers=0)
    with Scorer(correct_for_some, config, engine.tokenizer, engine.eos_token_ids) as scorer:
        found = evaluate(engine, scorer, ROWS, settings, max_tokens=1)
    assert sizes == [num_samples] * len(ROWS) + [len(ROWS)]
    assert found.accuracy == found.greedy_accuracy == 0.75
    assert found.pass_at[num_samples] == 0.75
