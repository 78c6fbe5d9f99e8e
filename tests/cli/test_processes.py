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

from treepo.forest import Forest
from treepo.train import checkpoint
from treepo.train.group import Group

WORDS = [
    "num_steps=2",
    "prompts_per_step=5",
    "minibatches_per_step=2",
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


def command(folder, num_processes, *words):
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={num_processes}"]
    launch += [f"--master-port={free_port()}", "-m"]
    start = [sys.executable, "-m"] if num_processes == 1 else launch
    return [*start, "treepo.cli.main", "train", *WORDS, *words, f"output_dir={folder}"]


def run(folder, num_processes, *words):
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        command(folder, num_processes, *words),
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
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    outputs = {n: run(root / str(n), n) for n in (1, 2)}
    assert outputs[2].stdout.count("steps, ") == 1
    assert outputs[2].stderr.count("run: ") == 1
    return root / "1", root / "2"


def test_two_processes_sample_the_trees_of_one(folders):
    one, two = (Forest.load(folder / "forests/step_1.safetensors") for folder in folders)
    for name, column in one.columns().items():
        np.testing.assert_array_equal(two.columns()[name], column, err_msg=name)


def test_two_processes_train_the_weights_of_one(folders):
    one, two = (rows_of(folder) for folder in folders)
    assert len(one) == len(two) == 2
    for name in ("reward", "accuracy", "num_tokens", "tree/kept", "tree/share_ratio"):
        assert two[0][name] == one[0][name], name
    for name in ("loss", "grad_norm", "entropy", "clip_ratio/region_mean"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-4, abs=1e-6), name
    weights = [load_file(checkpoint.latest(x) / "model.safetensors") for x in folders]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-6)


def test_the_first_process_evaluates_and_writes(folders):
    for folder in folders:
        assert sorted(x.stem for x in (folder / "eval").glob("*.json")) == ["after", "before"]
        assert (folder / "config.yaml").is_file()


def test_processes_stop_together_with_a_checkpoint_and_resume(tmp_path):
    folder = tmp_path / "run"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    words = ["num_steps=500", "eval.num_prompts=0"]
    process = subprocess.Popen(
        command(folder, 2, *words), env=variables, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    done = checkpoint.load_state(checkpoint.latest(folder)).step
    assert 1 <= done < 500
    launch = command(folder, 2)[: -len(WORDS) - 2]
    resumed = [*launch, "train", "--resume", str(folder), f"num_steps={done + 1}"]
    subprocess.run(resumed, env=variables, check=True, capture_output=True)
    assert len(rows_of(folder)) == done + 1


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
