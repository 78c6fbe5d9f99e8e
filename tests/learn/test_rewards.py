"""Reward functions: numbers, boxes, expressions, tasks of reasoning-gym, long answers."""

import math
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
from reward_calls import score

from treepo.config import GymConfig
from treepo.errors import InvalidConfigError, RewardError
from treepo.rewards import RewardRunner, boxed, exact_match, last_number, resolve
from treepo.rewards.math import find_last_boxed, find_last_number, parse_number
from treepo.rewards.overlong import overlong_punishment
from treepo.tasks.gym import gym_rows


def test_exact_match_ignores_white_space_around_only():
    completions = [" 7\n", "7 8", "78", ""]
    assert exact_match(completions=completions, answer=["7", "7 8", "7 8", "7"]) == [1, 1, 0, 0]


def test_exact_match_reads_messages():
    completions = [[{"role": "assistant", "content": "yes"}]]
    assert exact_match(completions=completions, answer=["yes"]) == [1]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 7", 7),
        ("it is 7.", 7),
        ("7, no, 8.50!", Fraction(17, 2)),
        ("1,234,567 apples", 1234567),
        ("(1,2)", 2),
        ("2,50", 50),
        ("$1,000.25", Fraction(4001, 4)),
        ("-$5", -5),
        ("$-5", -5),
        ("x=-3", -3),
        ("10-3", 3),
        ("f(x)-3", 3),
        ("\u22123", -3),
        ("Answer - 18", 18),
        ("Total:\n- 18", 18),
        ("-5", -5),
        ("= -$5", -5),
        ("it is \u2212 7", 7),
        ("50%", 50),
        ("1.5e3", 1500),
        (".5", Fraction(1, 2)),
        ("#337851", 337851),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert find_last_number(text) == number


def test_numbers_are_compared_by_value():
    completions = ["so 7.0", "so $1,000", "so 50%", "so -3", "so 3", "many"]
    answer = [7, "1000", "50", "-3", "-3", "5"]
    assert last_number(completions=completions, answer=answer) == [1, 1, 1, 1, 0, 0]


def test_the_answer_column_may_be_a_worked_solution():
    assert last_number(completions=["it is 72"], answer=["48 + 24 = 72\n#### 72"]) == [1]


@pytest.mark.parametrize("reward", [exact_match, last_number, boxed])
def test_a_missing_answer_is_an_error_and_not_a_zero(reward):
    result = score(reward, [r"\boxed{None}"], {"answer": [None]})
    assert math.isnan(result.values[0])
    assert result.num_errors == 1
    assert "the answer is missing" in result.first_error


def test_an_exit_is_an_error_of_its_completion_in_this_process_too():
    result = score(lambda completions, **columns: sys.exit(3), ["a"], num_workers=0)
    assert result.num_errors == 1


def test_an_answer_without_a_number_is_an_error():
    with pytest.raises(ValueError, match="answer 'none' holds no number"):
        last_number(completions=["7"], answer=["none"])


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{7}", "7"),
        (r"\boxed{1} then \boxed{\frac{3}{4}}.", r"\frac{3}{4}"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"{ \boxed{3}", "3"),
        (r"} \boxed{3}", "3"),
        (r"\boxed {3}", "3"),
        (r"\boxed{{{3}}}", "{{3}}"),
        ("boxed{3}", None),
        ("", None),
    ],
)
def test_the_last_complete_box_of_a_text(text, content):
    assert find_last_boxed(text) == content


def test_many_open_boxes_take_linear_time():
    start = time.perf_counter()
    assert find_last_boxed(r"\boxed{" * 50_000) is None
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        ("+7.0", 7),
        ("-1{,}234.5", Fraction(-2469, 2)),
        (r"\$7", 7),
        (r"50\%", 50),
        ("3/4", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        ("3/0", None),
        ("x+1", None),
        ("7 apples", None),
        ("1 2", None),
        ("1e999999999", None),
    ],
)
def test_a_text_that_is_one_number(text, number):
    assert parse_number(text) == number


def test_boxed_compares_numbers_by_value_and_the_rest_as_text():
    completions = [r"\boxed{0.75}", r"\boxed{x + 1}", r"\boxed{1+x}", "0.75", r"\boxed{\text{B}}"]
    answer = [r"\frac{3}{4}", "x+1", "x+1", "0.75", "B"]
    assert boxed(completions=completions, answer=answer) == [1, 1, 0, 0, 1]


def test_boxed_finds_the_box_of_a_worked_solution():
    assert boxed(completions=[r"\boxed{7}"], answer=[r"thus \boxed{7.0}."]) == [1]


def test_overlong_completions_are_punished_within_the_buffer():
    lengths = np.array([0, 60, 70, 80, 100])
    actual = overlong_punishment(lengths, max_tokens=100, buffer=40, penalty=2.0)
    np.testing.assert_allclose(actual, [0.0, 0.0, -0.5, -1.0, -2.0])
    assert not overlong_punishment(lengths, max_tokens=100, buffer=0, penalty=2.0).any()


def test_a_buffer_longer_than_the_room_punishes_within_the_room():
    lengths, room = np.array([0, 1, 4, 8, 1, 60, 100]), np.array([8, 8, 8, 8, 100, 100, 100])
    actual = overlong_punishment(lengths, max_tokens=room, buffer=64, penalty=1.0)
    np.testing.assert_allclose(actual, [0, -1 / 8, -1 / 2, -1, 0, -24 / 64, -1])
    assert overlong_punishment(np.array([1]), max_tokens=8, buffer=64, penalty=1.0) == [-1 / 8]


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"so \boxed{0.5}", r"\frac{1}{2}", 1.0),
        (r"\boxed{1+x}", "x+1", 1.0),
        (r"\boxed{\{2,1\}}", r"\{1,2\}", 1.0),
        (r"\boxed{1} no, \boxed{43}", "43", 1.0),
        (r"\boxed{43} no, \boxed{1}", "43", 0.0),
        (r"\boxed{43}", r"the answer is \boxed{43}", 1.0),
        ("I guess 1 2 3 43", "43", 0.0),
        (r"\boxed{43", "43", 0.0),
        (r"\boxed{}", "43", 0.0),
        ("", "43", 0.0),
    ],
)
def test_math_verify_compares_the_last_box_as_an_expression(completion, answer, expected):
    assert resolve("math_verify")(completions=[completion], answer=[answer]) == [expected]


def test_math_verify_refuses_an_answer_that_is_no_expression():
    with pytest.raises(ValueError, match="answer is missing"):
        resolve("math_verify")(completions=[r"\boxed{1}"], answer=[None])


def test_an_expression_that_never_ends_runs_out_of_time_in_its_worker():
    with RewardRunner("math_verify", 4.0, 1) as runner:
        towers = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{7}"]
        found = runner.score(["", ""], towers, [[], []], {"answer": ["7", "7"]})
    assert found.values[1] == 1.0
    assert found.values[0] == 0.0 or math.isnan(found.values[0])
    assert found.num_timeouts == int(math.isnan(found.values[0]))


GYM = {
    "task": "chain_sum",
    "options": ("min_terms=2", "max_terms=2", "max_digits=1", "min_digits=1"),
}


def gym_scores(name, texts):
    row = gym_rows(GymConfig(**GYM), seed=1, count=1)[0]
    count = len(texts)
    return resolve(name)(
        completions=texts, task=[row["task"]] * count, entry=[row["entry"]] * count
    )


def test_gym_wants_the_answer_in_its_tags_and_whole():
    row = gym_rows(GymConfig(**GYM), seed=1, count=1)[0]
    right = row["answer"]
    texts = [
        f"<answer>{right}</answer>",
        f"<answer>8</answer> no <answer> {right} </answer>",
        f"The answer is {right}",
        f"<answer>The answer is {right}</answer>",
        "<answer></answer>",
        "",
    ]
    assert gym_scores("gym", texts) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    partial = gym_scores("gym_partial", texts)
    assert partial[0] == 1.0
    assert 0 < partial[3] < 1


def test_a_gym_score_that_fails_is_0():
    entry = {"question": "?", "answer": "2", "metadata": {}}
    found = resolve("gym")(
        completions=["<answer>x</answer>"], task=["prime_factorization"], entry=[entry]
    )
    assert found == [0.0]


def test_gym_rows_depend_on_the_seed_and_name_what_is_wrong():
    config = GymConfig(**GYM)
    first, again, other = (gym_rows(config, seed, 20) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert "<answer>" in first[0]["prompt"][0]["content"]
    with pytest.raises(InvalidConfigError, match="did you mean chain_sum"):
        gym_rows(GymConfig(task="chain_sun"), 0, 1)
    with pytest.raises(InvalidConfigError, match="options of chain_sum"):
        gym_rows(GymConfig(task="chain_sum", options=("no_such=1",)), 0, 1)
    with pytest.raises(InvalidConfigError, match="key=value"):
        GymConfig(task="chain_sum", options=("max_terms",))
    with pytest.raises(RewardError, match="not registered"):
        resolve("gym")(completions=["<answer>1</answer>"], task=["nothing"], entry=[{}])


def test_gym_runs_behind_a_worker():
    row = gym_rows(GymConfig(**GYM), seed=1, count=1)[0]
    with RewardRunner("gym", 20.0, 1) as runner:
        columns = {"task": [row["task"]], "entry": [row["entry"]]}
        found = runner.score([""], [f"<answer>{row['answer']}</answer>"], [[]], columns)
    assert list(found.values) == [1.0]
