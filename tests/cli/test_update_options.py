"""Ways to run an update: adapters, recomputed activations, autocast, parts."""

import json

import pytest
import torch
from safetensors.torch import load_file

from treepo.cli.main import main
from treepo.config import (
    Activations,
    Autocast,
    EvalConfig,
    LoraConfig,
    LossConfig,
    OptimizerConfig,
    RewardConfig,
    SearchConfig,
    TrainConfig,
    UpdateConfig,
)
from treepo.engine.hook import plain_attention
from treepo.engine.load import load_model
from treepo.errors import InvalidInputError
from treepo.train import checkpoint
from treepo.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("single_thread")

ROWS = [{"prompt": f"{number}*{number % 7}="} for number in range(10, 23)]
LORA = LoraConfig(rank=4, alpha=8.0)


def count_ones(completions, **columns):
    return [text.count("1") / 4 for text in completions]


def config(folder, **changes):
    values = {
        "search": SearchConfig(width=4, segment_len=4, max_depth=3),
        "optimizer": OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
        "reward": RewardConfig(num_workers=0),
        "eval": EvalConfig(num_prompts=0),
        "num_steps": 2,
        "prompts_per_step": 3,
        "minibatches_per_step": 1,
        "output_dir": str(folder),
    }
    return TrainConfig(**{**values, **changes})


def trained(model_dir, own):
    model, tokenizer = load_model(str(model_dir), own.engine)
    trainer = Trainer(model, tokenizer, count_ones, ROWS, config=own)
    trainer.train()
    return trainer.engine.model


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_adapters_are_trained_and_nothing_else(tiny_model_dir, tmp_path):
    before, _ = load_model(str(tiny_model_dir), config(tmp_path).engine)
    model = trained(tiny_model_dir, config(tmp_path / "run", lora=LORA))
    first = dict(before.named_parameters())
    after = {n.replace(".base_layer", ""): p for n, p in model.named_parameters()}
    for name, value in first.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)
    moved = [n for n, p in after.items() if "lora_B" in n and bool(p.abs().max() > 0)]
    assert len(moved) > 4
    assert rows_of(tmp_path / "run")[0]["sampling/importance_sampling_ratio/max"] == 1.0


def test_the_reference_of_adapters_is_the_model_without_them(tiny_model_dir, tmp_path):
    own = config(tmp_path / "run", lora=LORA, num_steps=3, loss=LossConfig(kl_weight=0.01))
    trained(tiny_model_dir, own)
    rows = rows_of(tmp_path / "run")
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-7)
    assert rows[-1]["kl"] > 1e-5


def test_a_checkpoint_of_adapters_is_a_plain_model(tiny_model_dir, tmp_path):
    model = trained(tiny_model_dir, config(tmp_path / "run", lora=LORA))
    saved = checkpoint.latest(tmp_path / "run")
    loaded, _ = load_model(str(saved), config(tmp_path).engine)
    ids = torch.arange(3, 9)[None]
    with torch.no_grad(), plain_attention(model), plain_attention(loaded):
        expected, actual = (m(input_ids=ids).logits for m in (model, loaded))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("option", ["lora.rank=2", "loss.kl_weight=0.5"])
def test_a_run_resumed_by_the_command_goes_on_from_the_first_weights(tmp_path, option):
    words = [
        option,
        "prompts_per_step=2",
        "eval.num_prompts=0",
        "reward.num_workers=0",
        "optimizer.schedule=constant",
        "optimizer.learning_rate=1e-3",
        "num_threads=1",
    ]
    for name, counts in (("straight", [4]), ("resumed", [2, 4])):
        folder = str(tmp_path / name)
        assert main(["train", *words, f"num_steps={counts[0]}", f"output_dir={folder}"]) == 0
        for count in counts[1:]:
            assert main(["train", "--resume", folder, f"num_steps={count}"]) == 0
    expected, actual = (
        load_file(checkpoint.latest(tmp_path / name) / "model.safetensors")
        for name in ("straight", "resumed")
    )
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0)


def test_recomputed_activations_and_parts_train_the_same_weights(tiny_model_dir, tmp_path):
    plain = trained(tiny_model_dir, config(tmp_path / "plain"))
    recompute = UpdateConfig(activations=Activations.RECOMPUTE)
    again = trained(tiny_model_dir, config(tmp_path / "again", update=recompute))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
    cut = UpdateConfig(max_tokens_per_part=16)
    own = config(tmp_path / "cut", update=cut, max_tokens_per_microbatch=20)
    parts = trained(tiny_model_dir, own)
    assert rows_of(tmp_path / "cut")[0]["perf/forward_tokens"] > 0
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=0, atol=2e-4)


def test_autocast_trains_near_float32_and_logs_how_far_it_is_from_the_sampler(
    tiny_model_dir, tmp_path
):
    own = config(tmp_path / "run", update=UpdateConfig(autocast=Autocast.BFLOAT16))
    model = trained(tiny_model_dir, own)
    assert all(p.dtype is torch.float32 for p in model.parameters())
    row = rows_of(tmp_path / "run")[0]
    assert 0 < row["sampling/sampling_logp_difference/mean"] < 0.05
    plain = trained(tiny_model_dir, config(tmp_path / "plain"))
    exact = rows_of(tmp_path / "plain")[0]
    assert row["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.1)
    assert plain.dtype is torch.float32


def test_a_tree_above_a_micro_batch_is_trained_in_parts_by_default(tiny_model_dir, tmp_path):
    whole = trained(tiny_model_dir, config(tmp_path / "whole", num_steps=1))
    small = config(tmp_path / "parts", num_steps=1, max_tokens_per_microbatch=16)
    parts = trained(tiny_model_dir, small)
    (row,), (cut,) = rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts")
    assert row["perf/forward_tokens"] == row["perf/trained_unique_tokens"]
    assert cut["perf/forward_tokens"] == 2 * cut["perf/trained_unique_tokens"]
    assert cut["perf/trained_unique_tokens"] == row["perf/trained_unique_tokens"]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"update": {"activations": "recompute"}}, r"update\.activations=keep"),
        ({"update": {"parts": "keep"}, "loss": {"ratio": "trajectory"}}, "update.parts=recompute"),
    ],
)
def test_a_tree_above_a_micro_batch_is_refused_with_what_lets_it_be_cut(
    tiny_model_dir, tmp_path, changes, remedy
):
    own = config(tmp_path / "run", max_tokens_per_microbatch=16, **changes)
    with pytest.raises(InvalidInputError, match=rf"to at least \d+, .*{remedy}"):
        trained(tiny_model_dir, own)
