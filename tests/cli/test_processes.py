"""A run of two processes that torchrun starts, against one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from treepo.cli.main import main
from treepo.config import TrainConfig
from treepo.errors import InvalidConfigError
from treepo.forest import Forest
from treepo.train import checkpoint
from treepo.train.group import Group, check_processes

WORDS = [
    "num_steps=2",
    "prompts_per_step=5",
    "minibatches_per_step=2",
    # A tree a pass: of three trees one process has two and the other one.
    "max_tokens_per_microbatch=400",
    "eval.num_prompts=2",
    "eval.num_samples=1",
    "save_forests_every=1",
    "num_threads=1",
    "optimizer.learning_rate=1e-5",
    "optimizer.warmup_steps=0",
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train_words(folder, *words):
    return [*WORDS, *words, f"output_dir={folder}"]


def command(words):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    return [*launch, f"--master-port={free_port()}", "-m", "treepo.cli.main", "train", *words]


def run(words):
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        command(words),
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    threads = torch.get_num_threads()
    assert main(["train", *WORDS, f"output_dir={folder}"]) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module", params=["whole", "sharded"])
def two(request, tmp_path_factory):
    """A run of both steps at once; the sharded one is resumed after the first."""
    folder = tmp_path_factory.mktemp("two") / "run"
    if request.param == "whole":
        done = run(train_words(folder))
    else:
        words = ["update.weights=sharded", "update.activations=recompute", "num_steps=1"]
        run(train_words(folder, *words))
        done = run(["--resume", str(folder), "num_steps=2"])
    assert done.stdout.count("steps, ") == 1
    assert done.stderr.count("run: ") == 1
    return folder


def test_two_processes_sample_the_trees_of_one(one, two):
    forests = [Forest.load(folder / "forests/step_1.safetensors") for folder in (one, two)]
    for name, column in forests[0].columns().items():
        np.testing.assert_array_equal(forests[1].columns()[name], column, err_msg=name)


def test_two_processes_train_the_weights_of_one(one, two):
    rows = [rows_of(folder) for folder in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 2
    for name in ("reward", "accuracy", "num_tokens", "tree/kept", "tree/share_ratio"):
        assert rows[1][0][name] == rows[0][0][name], name
    for name in ("loss", "grad_norm", "entropy", "clip_ratio/region_mean"):
        assert rows[1][0][name] == pytest.approx(rows[0][0][name], rel=1e-4, abs=1e-6), name
    # The second step makes two optimizer steps; a split copy runs other code than a whole model.
    moved = [row[1]["ratio/max"] - 1 for row in rows]
    assert 1e-4 < moved[0] == pytest.approx(moved[1], rel=0.1)
    for file in ("model.safetensors", "training/optimizer.safetensors"):
        expected, found = (load_file(checkpoint.latest(x) / file) for x in (one, two))
        assert list(found) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=2e-6)


def test_the_first_process_evaluates_and_writes(one, two):
    for folder in (one, two):
        assert sorted(x.stem for x in (folder / "eval").glob("*.json")) == ["after", "before"]
        assert (folder / "config.yaml").is_file()


@pytest.mark.usefixtures("single_thread")
def test_processes_stop_together_with_a_checkpoint_that_one_process_resumes(tmp_path):
    folder = tmp_path / "run"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    words = ["num_steps=500", "eval.num_prompts=0", "update.weights=sharded"]
    process = subprocess.Popen(
        command(train_words(folder, *words)), env=variables, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    done = checkpoint.load_state(checkpoint.latest(folder)).step
    assert 1 <= done < 500
    assert main(["train", "--resume", str(folder), f"num_steps={done + 1}"]) == 0
    assert len(rows_of(folder)) == done + 1


@pytest.mark.usefixtures("single_thread")
def test_processes_that_stop_within_an_evaluation_make_it_when_resumed(tmp_path):
    folder = tmp_path / "run"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    words = ["eval.every=1", "eval.num_prompts=2", "update.weights=sharded", "save_every=0"]
    process = subprocess.Popen(
        command(train_words(folder, *words, "num_steps=3", "eval.num_samples=500")),
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "evaluation, step_1: " in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert checkpoint.load_state(checkpoint.latest(folder)).step == 1
    assert not (folder / "eval/step_1.json").exists()
    assert main(["train", "--resume", str(folder), "num_steps=2", "eval.num_samples=1"]) == 0
    assert (folder / "eval/step_1.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["max_unfinished_trees=1"], "max_unfinished_trees"),
        (["update.weights=sharded", "lora.rank=2"], "lora.rank"),
        (["update.weights=sharded", "update.max_tokens_per_part=64"], "max_tokens_per_part"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_by_name(words, said):
    config = TrainConfig.load(overrides=words)
    check_processes(config, 1)
    with pytest.raises(InvalidConfigError, match=said):
        check_processes(config, 2)


def test_shares_are_balanced_by_size():
    class Rank(Group):
        def __init__(self, rank):
            self.rank, self.size = rank, 3

    sizes = np.array([9, 1, 8, 2, 7, 3, 6])
    shares = [Rank(rank).share(sizes) for rank in range(3)]
    assert sorted(np.concatenate(shares)) == list(range(7))
    totals = [sizes[share].sum() for share in shares]
    assert max(totals) - min(totals) <= 3
    assert list(Group().share(sizes)) == list(range(7))
