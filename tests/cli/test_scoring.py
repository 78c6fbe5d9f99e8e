"""From completions to one reward a trajectory: several functions, and what they leave out."""

import dataclasses
import json
import math

import numpy as np
import pytest

from treepo.config import EngineConfig, EvalConfig, RewardConfig, SearchConfig, StopConfig
from treepo.engine import Engine
from treepo.engine.load import load_model
from treepo.errors import RewardError
from treepo.evaluate import MAX_SCORED_AT_ONCE, Evaluation, evaluate
from treepo.scoring import Scorer, require_some

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


def of_length(max_tokens, **rules):
    return SearchConfig(segment_len=max_tokens, max_depth=1, **rules)


def test_a_batch_of_an_evaluation_that_fails_as_a_whole_does_not_end_it(engine):
    num_samples = MAX_SCORED_AT_ONCE // 2 + 1
    settings = EvalConfig(num_prompts=len(ROWS), num_samples=num_samples)
    config = RewardConfig(num_workers=0)
    functions = [fails_for_the_first_prompt]
    with Scorer(functions, config, engine.tokenizer, engine.eos_token_ids) as scorer:
        found = evaluate(engine, scorer, ROWS, settings, search=of_length(1))
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
        evaluate(engine, scorer, ROWS, settings, search=of_length(20))
        free, texts[:] = list(texts), []
        search = of_length(20, stop=StopConfig(strings=("1",)))
        evaluate(engine, scorer, ROWS, settings, search=search)
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
        found = evaluate(engine, scorer, ROWS, settings, search=of_length(1))
    assert sizes == [num_samples] * len(ROWS) + [len(ROWS)]
    assert found.accuracy == found.greedy_accuracy == 0.75
    assert found.pass_at[num_samples] == 0.75


def evaluated(engine, function, search, num_samples=4):
    settings = EvalConfig(num_prompts=len(ROWS), num_samples=num_samples)
    config = RewardConfig(num_workers=0)
    with Scorer(function, config, engine.tokenizer, engine.eos_token_ids) as scorer:
        return evaluate(engine, scorer, ROWS, settings, search=search)


def test_mean_reward_is_over_the_sampled_completions_that_have_one(engine):
    def grades(completions, prompts, **columns):
        if len(completions) == len(ROWS):
            return one(completions)  # The greedy ones.
        values = dict(zip([row["prompt"] for row in ROWS], (None, 0.25, 0.5, 0.75), strict=True))
        return [values[prompt] for prompt in prompts]

    found = evaluated(engine, grades, of_length(1))
    assert (found.mean_reward, found.accuracy, found.greedy_accuracy) == (0.5, 0.0, 1.0)
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_evaluation_without_any_reward_survives_json(engine):
    found = evaluated(engine, lambda completions, **_: [None] * len(completions), of_length(1))
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Evaluation.from_dict(json.loads(text))
    assert math.isnan(found.mean_reward)
    assert math.isnan(again.mean_reward)
    assert again.to_dict() == found.to_dict()


def test_clipped_ratio_is_of_the_sampled_completions_that_did_not_end_by_themselves(engine):
    calls = []

    def keep(completions, completion_ids, **columns):
        calls.append([ids[-1] in engine.eos_token_ids for ids in completion_ids])
        return one(completions)

    found = evaluated(engine, keep, of_length(6))
    sampled, _ = calls
    assert 0 < found.clipped_ratio == 1 - np.mean(sampled) < 1


def test_completions_of_an_evaluation_end_where_they_repeat_themselves(engine):
    lengths = []

    def keep(completions, completion_ids, **columns):
        lengths.extend(map(len, completion_ids))
        return one(completions)

    search = SearchConfig(segment_len=4, max_depth=5)
    free = evaluated(engine, keep, search)
    without, lengths[:] = np.array(lengths), []
    rule = StopConfig(repetition="tokens", repetition_len=1, repetition_count=2)
    cut = evaluated(engine, keep, search.replace(stop=rule))
    assert (lengths <= without).all()
    is_cut = lengths < without
    assert is_cut.sum() > 4
    assert set(np.array(lengths)[is_cut]) <= {4, 8, 12, 16}  # Ends of segments.
    assert cut.clipped_ratio >= free.clipped_ratio > 0


@pytest.fixture
def batches(engine):
    """Scores of two completions of each prompt, one batch for each function."""
    forest = engine.generate([row["prompt"] for row in ROWS], n=2, max_tokens=3)

    def score(*functions):
        config = RewardConfig(num_workers=0)
        found = []
        for function in functions:
            with Scorer(function, config, engine.tokenizer, engine.eos_token_ids) as scorer:
                found.append(scorer.score(forest, ROWS))
        return found

    return score


def fails(completions, **columns):
    raise ValueError("no such answer")


def test_a_reward_that_fails_on_everything_is_refused_with_its_error(batches):
    failed = batches(fails, fails)
    assert [np.isnan(scores.values).all() for scores in failed] == [True, True]
    with pytest.raises(RewardError, match="all 16 completions: ValueError: no such answer"):
        require_some(failed)
    slow = [dataclasses.replace(x, num_errors=0, num_timeouts=8, first_error=None) for x in failed]
    with pytest.raises(RewardError, match=r"all 16 completions: the time limit reward\.timeout_s"):
        require_some(slow)


def test_one_reward_in_any_batch_is_enough_and_none_is_no_failure(batches):
    none = [None] * 8
    require_some(batches(fails, fails_for_the_first_prompt))
    require_some(batches(lambda completions, **_: none))
    require_some([])
