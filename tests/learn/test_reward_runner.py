"""The processes that call reward functions: order, time limits, failures, ends."""

import importlib
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from reward_calls import score

from treepo.errors import RewardError
from treepo.rewards import RewardRunner, resolve
from treepo.rewards.runner import MAX_TIMEOUTS
from treepo.rewards.worker import Worker

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
