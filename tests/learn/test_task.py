"""The embedded task and the packaged model."""

import hashlib
import importlib.util
import json
import random
import re
import struct
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from treepo.errors import DataError
from treepo.rewards import RewardRunner
from treepo.tasks import embedded
from treepo.tasks.multiplication import (
    ALPHABET,
    SOLUTION_LEN,
    Problem,
    Pupil,
    draw_problem,
    heldout_examples,
    product_reward,
    train_examples,
    write_solution,
)

WEIGHTS = embedded.MODEL_PATH / "model.safetensors"
ROOT = Path(__file__).parents[2]


def problem_of(prompt):
    multiplicand, multiplier = prompt.removesuffix("=").split("*")
    return Problem(multiplicand=int(multiplicand), multiplier=int(multiplier))


def reward_of(completion, answer):
    (reward,) = product_reward(
        prompts=["p"], completions=[completion], completion_ids=[[0]], answer=[answer]
    )
    return reward


def test_no_problem_is_in_both_splits():
    train = {row["prompt"] for row in islice(train_examples(3), 5000)}
    heldout = {row["prompt"] for row in heldout_examples(2000)}
    assert not train & heldout
    assert not any(problem_of(prompt).is_heldout for prompt in train)
    assert all(problem_of(prompt).is_heldout for prompt in heldout)


def test_about_an_eighth_is_held_out():
    is_heldout = [Problem(multiplicand=n, multiplier=7).is_heldout for n in range(0, 100_000, 9)]
    assert np.mean(is_heldout) == pytest.approx(1 / 8, abs=0.02)


def test_held_out_problems_are_distinct():
    prompts = [row["prompt"] for row in heldout_examples(3000)]
    assert len(set(prompts)) == len(prompts)


def test_fewer_held_out_problems_are_the_first_of_more():
    assert heldout_examples(50) == heldout_examples(200)[:50]


def test_too_many_held_out_problems_are_refused():
    with pytest.raises(DataError, match="num_examples is 50001, ask for at most 50000"):
        heldout_examples(50_001)


def test_a_row_depends_on_the_seed_and_its_index_only():
    rows = train_examples(5, 100)
    assert rows[41] == list(rows)[41] == rows[40:43][1] == rows[-59]
    assert rows[41] != train_examples(6, 100)[41]


def test_draws_are_the_same_on_every_machine():
    assert train_examples(0)[0] == {"prompt": "61372*3=", "answer": "184116"}


def test_a_row_behind_the_end_is_refused():
    with pytest.raises(IndexError, match="row 100 of a data set of 100 rows"):
        train_examples(0, 100)[100]


def test_an_answer_is_the_product_in_six_digits():
    for row in islice(train_examples(1), 500):
        multiplicand, multiplier = row["prompt"].removesuffix("=").split("*")
        assert row["answer"] == f"{int(multiplicand) * int(multiplier):06d}"


def test_a_written_solution():
    problem = Problem(multiplicand=37539, multiplier=9)
    assert problem.prompt == "37539*9="
    assert write_solution(problem) == "9*9+0=81;3*9+8=35;5*9+3=48;7*9+4=67;3*9+6=33;#337851"


def test_solutions_are_right_in_every_step():
    for index in range(500):
        problem = draw_problem(2, index, is_heldout=index % 2 == 0)
        steps, _, answer = write_solution(problem).partition("#")
        assert answer == problem.answer
        for a, b, carry, value in re.findall(r"(\d)\*(\d)\+(\d)=(\d\d);", steps):
            assert int(a) * int(b) + int(carry) == int(value)


def test_a_pupil_keeps_the_format_and_carries_his_slips_on():
    pupil = Pupil(random.Random(0))
    for index in range(500):
        solution = pupil.solve(draw_problem(0, index, is_heldout=False))
        assert len(solution) == SOLUTION_LEN
        assert set(solution) <= set(ALPHABET)
        steps = re.findall(r"\d\*\d\+(\d)=(\d)(\d);", solution)
        carries, tens, units = zip(*steps, strict=True)
        assert carries == ("0", *tens[:-1])
        assert solution.endswith("#" + tens[-1] + "".join(reversed(units)))


def test_a_pupil_is_wrong_about_a_third_of_the_facts_at_their_own_rates():
    pupil = Pupil(random.Random(0))
    hard = pupil.hard_facts
    assert 20 <= len(hard) <= 35
    assert all(0.3 <= chance <= 0.7 and abs(chance - 0.5) > 0.07 for chance in hard.values())
    fact, chance = next(iter(hard.items()))
    wrong = np.mean([pupil.fact(*fact) != fact[0] * fact[1] for _ in range(4000)])
    assert wrong == pytest.approx(chance, abs=0.04)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("#000042", 1),
        ("6*7+0=42;#000042", 1),
        ("#000043", 0),
        ("#000042;", 0),
        ("#42", 0),
        ("#1#000042", 0),
        ("000042", 0),
        ("", 0),
    ],
)
def test_the_answer_behind_the_only_mark_is_rewarded(completion, reward):
    assert reward_of(completion, "000042") == reward


def test_the_reward_runs_in_a_worker_by_its_name():
    row = heldout_examples(1)[0]
    solution = write_solution(problem_of(row["prompt"]))
    with RewardRunner(embedded.REWARD, timeout_s=20.0) as runner:
        columns = {"answer": [row["answer"]] * 2}
        result = runner.score([row["prompt"]] * 2, [solution, "#"], [[0], [0]], columns)
    assert result.values.tolist() == [1, 0]


def test_the_readme_names_the_digest_of_every_packaged_file():
    readme = (embedded.MODEL_PATH / "README.md").read_text()
    files = [path for path in embedded.MODEL_PATH.iterdir() if path.name != "README.md"]
    assert WEIGHTS in files
    for path in files:
        assert f"| {path.name} | {hashlib.sha256(path.read_bytes()).hexdigest()} |" in readme


def test_the_packaged_weights_are_small_and_in_fp32():
    assert WEIGHTS.stat().st_size <= 8e6
    with WEIGHTS.open("rb") as file:
        header = json.loads(file.read(*struct.unpack("<Q", file.read(8))))
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert sum(np.prod(entry["shape"]) for entry in header.values()) <= 2_000_000


def test_the_tokenizer_has_one_token_a_character():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded.MODEL_PATH)
    assert tokenizer(ALPHABET)["input_ids"] == list(range(len(ALPHABET)))
    assert tokenizer.decode([*range(len(ALPHABET)), 17], skip_special_tokens=True) == ALPHABET
    assert tokenizer.decode([7, 17]) == "7<eos>"


def test_the_packaged_model_gets_some_held_out_problems_right():
    torch = pytest.importorskip("torch")
    path = ROOT / "tools/make_embedded_model.py"
    spec = importlib.util.spec_from_file_location("make_embedded_model", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    torch.set_num_threads(1)
    model = tool.LlamaForCausalLM.from_pretrained(embedded.MODEL_PATH)
    sampled = tool.accuracy(model, temperature=1.0, seed=0)
    # 400 problems: three standard errors around 31 percent
    assert 0.2 < sampled < 0.4
