"""The same commands on a real model: SmolLM2-135M-Instruct."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from treepo.cli.main import main

FOLDER = Path(
    os.environ.get(
        "TREEPO_SMOLLM2", Path(__file__).resolve().parents[2] / "models/SmolLM2-135M-Instruct"
    )
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def sums(tmp_path):
    """Easy sums as chats, with their answers."""
    if not FOLDER.is_dir():
        pytest.fail(f"{FOLDER} does not exist; run: python tools/prepare_smollm2.py")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {a} + {b}? Give the number only."}],
            "answer": str(a + b),
        }
        for a, b in [(2, 3), (1, 1), (4, 2), (5, 5), (3, 6), (10, 2), (7, 1), (6, 6)]
    ]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_two_training_steps_of_four_trees_of_eight_leaves_move_the_model(sums, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["prompts_per_step=4", "num_steps=2", "search.width=8", "search.segment_len=8"]
    words += ["search.max_depth=3", "max_sampling_batches=1", "optimizer.learning_rate=1e-5"]
    command = ["train", "--model", str(FOLDER), "--data", str(sums), "--reward", "last_number"]
    assert main([*command, f"output_dir={run}", *words]) == 0
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [step["tree/sampled"] for step in steps] == [4, 4]
    assert sum(step["tree/kept"] for step in steps) > 0
    before = load_file(FOLDER / "model.safetensors")
    after = load_file(run / "checkpoints" / "step_2" / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_a_rollout_prints_and_saves_a_real_tree(sums, tmp_path, capsys):
    out = tmp_path / "forest.safetensors"
    words = ["search.width=8", "search.segment_len=8", "search.max_depth=3"]
    command = ["rollout", "--model", str(FOLDER), "--prompts", str(sums), "--out", str(out)]
    assert main([*command, *words]) == 0
    assert "share ratio" in capsys.readouterr().out
    assert out.is_file()
