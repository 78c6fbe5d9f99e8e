"""Reward functions and the processes that call them."""

import importlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from fractions import Fraction

import numpy as np
import pytest

from treepo.config import GymConfig
from treepo.errors import InvalidConfigError, RewardError
from treepo.rewards import RewardRunner, boxed, exact_match, last_number, resolve
from treepo.rewards.math import find_last_boxed, find_last_number, parse_number
from treepo.rewards.overlong import overlong_punishment
from treepo.rewards.runner import MAX_TIMEOUTS
from treepo.rewards.worker import Worker
from treepo.tasks.gym import gym_rows

USER_MODULE = """
    import os, sys, time

    def by_length(completions, **columns):
        return [float(len(completion)) for completion in completions]

    def whole_batch(completions, **columns):
        return [float(len(completions))] * len(completions)

    def hang_on_x(completions, **columns):
        while any("x" in completion for completion in completions):
            time.sleep(0.01)
        return [1.0] * len(completions)

    def raise_on_x(completions, **columns):
        if any("x" in completion for completion in completions):
            raise ValueError("no x please")
        return [1.0] * len(completions)

    def die_on_x(completions, **columns):
        if any("x" in completion for completion in completions):
            os._exit(7)
        return [1.0] * len(completions)

    def none_on_x(completions, **columns):
        return [None if "x" in completion else 1 for completion in completions]

    def too_few(completions, **columns):
        return [1.0]

    def infinite(completions, **columns):
        return [float("inf")] * len(completions)

    def a_number(completions, **columns):
        return 1.0

    def process_id(completions, **columns):
        return [float(os.getpid())] * len(completions)

    def has_torch(completions, **columns):
        return [float("torch" in sys.modules)] * len(completions)

    def needs_answer(completions, answer):
        return [float(a == c) for c, a in zip(completions, answer)]

    def all_columns(prompts, completions, completion_ids, **columns):
        return [float(repr([prompts, completions, completion_ids, columns]) == EXPECTED)]

    def slow_to_prepare(completions, **columns):
        return [float(PREPARED)] * len(completions)

    def prepare():
        global PREPARED
        time.sleep(1.5)
        PREPARED = True

    PREPARED = False
    slow_to_prepare.prepare = prepare

    class Unreadable:
        def __reduce__(self):
            return int, ("no number",)

    EXPECTED = repr([["p"], ["c"], [[1, 2]], {"level": [3]}])
    not_a_function = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "user_rewards.py").write_text(textwrap.dedent(USER_MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    yield "user_rewards"
    sys.modules.pop("user_rewards", None)


def score(reward, completions, columns=None, timeout_s=20.0, num_workers=1):
    with RewardRunner(reward, timeout_s, num_workers) as runner:
        ids = [[0]] * len(completions)
        return runner.score(["p"] * len(completions), completions, ids, columns or {})


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


def test_an_unknown_reward_names_the_nearest():
    with pytest.raises(RewardError, match="'exact_mach', did you mean exact_match"):
        resolve("exact_mach")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("user_rewards:no_such_function", "user_rewards has no no_such_function"),
        ("user_rewards:not_a_function", "is a int, not a function"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(user_module, name, message):
    with pytest.raises(RewardError, match=message):
        RewardRunner(name)


def test_a_module_of_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "rewards_here.py").write_text("def one(completions, **c):\n    return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    assert score("rewards_here:one", ["a"]).values.tolist() == [1.0]


def test_a_function_gets_everything_by_name(user_module):
    with RewardRunner(f"{user_module}:all_columns") as runner:
        result = runner.score(["p"], ["c"], [[1, 2]], {"level": [3]})
    assert result.values.tolist() == [1.0]


def test_rewards_keep_the_order_of_completions_with_several_workers(user_module):
    completions = ["a" * n for n in (3, 1, 4, 1, 5)]
    result = score(f"{user_module}:by_length", completions, num_workers=2)
    assert result.values.tolist() == [3, 1, 4, 1, 5]
    assert result.values.dtype == np.float32


def test_one_worker_gets_the_whole_batch_in_one_call(user_module):
    assert score(f"{user_module}:whole_batch", ["a"] * 5).values.tolist() == [5] * 5


def test_more_workers_than_completions_is_fine(user_module):
    assert score(f"{user_module}:by_length", ["ab"], num_workers=3).values.tolist() == [2]


def test_an_empty_batch_has_no_rewards(user_module):
    assert score(f"{user_module}:by_length", []).values.shape == (0,)


def test_none_is_no_reward_and_no_error(user_module):
    result = score(f"{user_module}:none_on_x", ["a", "x"])
    np.testing.assert_array_equal(result.values, [1, math.nan])
    assert (result.num_timeouts, result.num_errors) == (0, 0)


def test_only_the_completion_that_hangs_times_out(user_module):
    start = time.perf_counter()
    result = score(f"{user_module}:hang_on_x", ["a", "x", "b"], timeout_s=0.5)
    np.testing.assert_array_equal(result.values, [1, math.nan, 1])
    assert (result.num_timeouts, result.num_errors) == (1, 0)
    assert time.perf_counter() - start < 15


def test_completions_that_hang_cost_only_themselves(user_module):
    completions = ["x"] * 8 + ["a"] * 56
    result = score(f"{user_module}:hang_on_x", completions, timeout_s=0.3)
    np.testing.assert_array_equal(result.values, [math.nan] * 8 + [1.0] * 56)
    assert result.is_failed.tolist() == [True] * 8 + [False] * 56
    assert (result.num_timeouts, result.num_errors) == (8, 0)
    assert result.num_slow_calls == 4  # 64 completions, 16, and twice 4.


@pytest.mark.parametrize("first", [0, 8, 56])
def test_completions_that_raise_are_found_in_few_calls(first):
    sizes = []

    def raise_on_x(completions, **columns):
        sizes.append(len(completions))
        if "x" in completions:
            raise ValueError("no x please")
        return [1.0] * len(completions)

    completions = ["x" if first <= place < first + 8 else "a" for place in range(64)]
    result = score(raise_on_x, completions, num_workers=0)
    np.testing.assert_array_equal(np.isnan(result.values), [x == "x" for x in completions])
    assert (result.num_errors, result.num_slow_calls) == (8, 0)
    assert sizes == [64] + [16] * 4 + [4] * 4 + [1] * 8


def test_a_batch_that_hangs_everywhere_is_given_up(user_module):
    completions = ["x"] * (MAX_TIMEOUTS + 20)
    result = score(f"{user_module}:hang_on_x", completions, timeout_s=0.05)
    assert np.isnan(result.values).all()
    assert result.num_timeouts == len(completions)


def test_a_runner_goes_on_after_a_time_out(user_module):
    with RewardRunner(f"{user_module}:hang_on_x", timeout_s=0.5) as runner:
        assert runner.score(["p"], ["x"], [[0]], {}).num_timeouts == 1
        assert runner.score(["p"], ["a"], [[0]], {}).values.tolist() == [1.0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_only_the_completion_that_raises_is_an_error(user_module, num_workers):
    result = score(f"{user_module}:raise_on_x", ["a", "x", "b"], num_workers=num_workers)
    np.testing.assert_array_equal(result.values, [1, math.nan, 1])
    assert (result.num_timeouts, result.num_errors) == (0, 1)
    assert result.first_error == "ValueError: no x please"


def test_only_the_completion_that_ends_the_process_is_an_error(user_module):
    result = score(f"{user_module}:die_on_x", ["a", "x", "b"])
    np.testing.assert_array_equal(result.values, [1, math.nan, 1])
    assert result.num_errors == 1
    assert result.first_error == "the worker process died, exit code 7"


def test_a_batch_that_kills_its_process_everywhere_is_given_up(user_module, monkeypatch):
    started = []

    def start(function):
        started.append(function)
        return Worker(function)

    monkeypatch.setattr("treepo.rewards.runner.MAX_DEATHS", 2)
    monkeypatch.setattr("treepo.rewards.runner.Worker", start)
    completions = ["x"] * 20
    result = score(f"{user_module}:die_on_x", completions, num_workers=1)
    assert np.isnan(result.values).all()
    assert result.is_failed.all()
    assert (result.num_timeouts, result.num_errors) == (0, len(completions))
    assert len(started) == 7  # For the whole batch, its quarters, and two completions.


def test_time_to_prepare_a_worker_is_no_time_of_a_call(user_module):
    result = score(f"{user_module}:slow_to_prepare", ["a"], timeout_s=1.0)
    assert result.values.tolist() == [1.0]


def test_a_column_that_a_worker_cannot_read_is_refused_with_the_remedy(user_module):
    unreadable = importlib.import_module(user_module).Unreadable()
    with pytest.raises(RewardError, match=r"columns cannot be read .*num_workers=0"):
        score(f"{user_module}:by_length", ["a"], {"column": [unreadable]})


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_wrong_number_of_values_is_refused(user_module, num_workers):
    with pytest.raises(RewardError, match="too_few returned 1 values, expected 3"):
        score(f"{user_module}:too_few", ["a", "b", "c"], num_workers=num_workers)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("infinite", "infinite returned inf, expected a finite number or None"),
        ("a_number", "a_number returned float, expected a list of 1 values"),
    ],
)
def test_values_that_are_no_rewards_are_refused(user_module, name, message):
    with pytest.raises(RewardError, match=message):
        score(f"{user_module}:{name}", ["a"])


def test_a_missing_column_is_refused():
    with pytest.raises(
        RewardError, match=r"exact_match: missing a required .*'answer'; columns .*: solution"
    ):
        score("exact_match", ["a"], {"solution": ["a"]})


def test_a_function_that_takes_no_further_columns_is_refused(user_module):
    with pytest.raises(RewardError, match=r"needs_answer: got an unexpected .*\*\*columns"):
        score(f"{user_module}:needs_answer", ["a"], {"answer": ["a"]})


def test_a_column_of_another_length_is_refused():
    with pytest.raises(RewardError, match="answer has 2 entries, expected 1"):
        score("exact_match", ["a"], {"answer": ["a", "b"]})


def test_a_lambda_is_refused_with_the_remedy():
    with pytest.raises(RewardError, match=r"<lambda> cannot be sent .* set num_workers=0"):
        RewardRunner(lambda completions, **columns: [1.0])


def test_a_lambda_runs_in_this_process():
    result = score(lambda completions, **columns: [1.0] * len(completions), ["a"], num_workers=0)
    assert result.values.tolist() == [1.0]


def test_a_function_of_a_module_runs_in_a_worker(user_module):
    import user_rewards

    result = score(user_rewards.process_id, ["a"])
    assert result.values[0] != os.getpid()


def test_workers_do_not_import_torch(user_module):
    assert score(f"{user_module}:has_torch", ["a"]).values.tolist() == [0.0]


def test_closing_ends_the_worker(user_module):
    with RewardRunner(f"{user_module}:process_id") as runner:
        worker_id = int(runner.score(["p"], ["a"], [[0]], {}).values[0])
        os.kill(worker_id, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(worker_id, 0)


SCRIPT = """
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    import time
    from treepo.rewards import RewardRunner

    runner = RewardRunner("user_rewards:{name}", timeout_s=60.0)
    print(int(runner.score(["p"], ["a"], [[0]], {{}}).values[0]), flush=True)
    {then}
"""


def run_script(tmp_path, name, then):
    script = textwrap.dedent(SCRIPT).format(name=name, then=then)
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_gone(process_id, patience_s=10.0):
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("ending", ["pass", "raise KeyError", "import os; os._exit(1)"])
def test_workers_end_with_their_parent(user_module, tmp_path, ending):
    process = run_script(tmp_path, "process_id", ending)
    output, _ = process.communicate(timeout=60)
    assert is_gone(int(output))


def test_ctrl_c_ends_a_call_that_hangs(user_module, tmp_path):
    then = 'runner.score(["p"], ["x"], [[0]], {})'
    process = run_script(tmp_path, "hang_on_x", then)
    assert process.stdout.readline() == "1\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert errors.strip().endswith("KeyboardInterrupt")


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
