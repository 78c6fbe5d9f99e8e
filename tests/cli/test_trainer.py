"""What a run does: steps, metrics, evaluations, data, errors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import (
    ROWS,
    config,
    count_ones,
    equal,
    metrics_of,
    trainer,
    unfinished,
    weights,
)

from treepo.config import (
    AdvantageConfig,
    Average,
    Correct,
    CorrectionConfig,
    EngineConfig,
    EvalConfig,
    LossConfig,
    ModelConfig,
    Objective,
    OptimizerConfig,
    Ratio,
    RewardConfig,
    SearchConfig,
    TrainConfig,
    UpdateConfig,
)
from treepo.engine.load import load_model
from treepo.errors import (
    DataError,
    InvalidConfigError,
    InvalidInputError,
    NotFiniteError,
    RewardError,
)
from treepo.train import checkpoint
from treepo.train.collect import Collector, trees_with_signal
from treepo.train.dataset import PromptSource
from treepo.train.metrics import reward_metrics
from treepo.train.optimizer import learning_rate
from treepo.train.trainer import Trainer
from treepo.train.update import num_minibatches

pytestmark = pytest.mark.usefixtures("single_thread")


def test_training_moves_the_weights_and_evaluates_before_and_after(finished):
    result, first, last = finished
    assert not equal(first, last)
    assert result.before is not None
    assert result.after is not None
    assert result.num_steps == 4


def test_evaluations_of_a_run_end_completions_as_its_search_does(tiny_model_dir, tmp_path):
    calls = []

    def keep(completions, **columns):
        calls.append(completions)
        return [float(index) for index in range(len(completions))]

    search = SearchConfig(width=4, segment_len=10, max_depth=2, stop={"strings": ["1"]})
    trainer(tiny_model_dir, config(tmp_path / "run", search=search, num_steps=1), keep).train()
    before, after = calls[:2], calls[3:]
    assert [len(texts) for texts in (*before, *after)] == [4, 2, 4, 2]
    for texts in ([*before[0], *before[1]], [*after[0], *after[1]]):
        assert any("1" in text for text in texts)
        assert not any("1" in text[:-1] for text in texts)


def test_metrics_have_one_line_a_step_with_finite_numbers(finished):
    lines = (finished[0].run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for name in ("reward", "loss", "grad_norm", "entropy", "tree/share_ratio", "step_time"):
        assert all(math.isfinite(row[name]) for row in rows), name
    assert all(row["tree/leaves"] == 4 for row in rows)


def test_on_policy_the_probability_ratio_is_exactly_1(finished, tiny_model_dir, tmp_path):
    one_step = config(tmp_path / "run", num_steps=1, minibatches_per_step=1)
    trainer(tiny_model_dir, one_step).train()
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["sampling/sampling_logp_difference/mean"] == 0.0
    assert row["sampling/importance_sampling_ratio/min"] == 1.0
    assert row["sampling/importance_sampling_ratio/max"] == 1.0


@pytest.mark.parametrize(
    ("preset", "loss"),
    [
        ("spo_tree", LossConfig()),
        ("treerl", LossConfig(dual_clip=10.0)),
        ("grpo", LossConfig(ratio=Ratio.TRAJECTORY, average=Average.TRAJECTORIES)),
        ("dr_grpo", LossConfig(objective=Objective.CISPO, average=Average.MAX_TOKENS)),
    ],
)
def test_other_estimators_and_losses_train(tiny_model_dir, tmp_path, preset, loss):
    changes = {"advantage": AdvantageConfig(preset=preset), "loss": loss, "num_steps": 1}
    own = trainer(tiny_model_dir, config(tmp_path / "run", **changes))
    before = weights(own)
    own.train()
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert math.isfinite(row["loss"])
    assert row["grad_norm"] > 0
    assert not equal(before, weights(own))


def test_divergence_is_from_the_first_weights_and_holds_the_policy_to_them(
    tiny_model_dir, tmp_path
):
    moved = {}
    for weight in (1e-9, 20.0):
        own = config(tmp_path / f"run_{weight}", loss=LossConfig(kl_weight=weight))
        trainer(tiny_model_dir, own).train()
        rows = metrics_of(tmp_path / f"run_{weight}")
        assert rows[0]["kl"] < rows[-1]["kl"]
        moved[weight] = rows[-1]["kl"]
    assert moved[20.0] < 0.5 * moved[1e-9]


def test_reference_may_be_another_model(tiny_model_dir, tmp_path):
    own = config(
        tmp_path / "run",
        num_steps=1,
        loss=LossConfig(kl_weight=0.1),
        model=ModelConfig(reference=str(tiny_model_dir)),
    )
    changed = trainer(tiny_model_dir, own)
    with torch.no_grad():
        changed.engine.model.lm_head.weight.mul_(1.5)
    changed.train()
    assert metrics_of(tmp_path / "run")[0]["kl"] > 1e-4


@pytest.mark.parametrize("by", [Correct.TRUNCATE, Correct.MASK])
def test_corrections_change_nothing_where_sampler_and_trainer_agree(tiny_model_dir, tmp_path, by):
    plain = trainer(tiny_model_dir, config(tmp_path / "plain"))
    plain.train()
    loss = LossConfig(correction=CorrectionConfig(by=by))
    corrected = trainer(tiny_model_dir, config(tmp_path / "corrected", loss=loss))
    corrected.train()
    assert equal(weights(plain), weights(corrected))


def test_epochs_train_on_the_same_trees_again(tiny_model_dir, tmp_path):
    own = config(tmp_path / "run", num_steps=1, epochs_per_step=3, minibatches_per_step=1)
    trainer(tiny_model_dir, own).train()
    row = metrics_of(tmp_path / "run")[0]
    once = config(tmp_path / "once", num_steps=1, minibatches_per_step=1)
    trainer(tiny_model_dir, once).train()
    first = metrics_of(tmp_path / "once")[0]
    assert row["perf/trained_unique_tokens"] == 3 * first["perf/trained_unique_tokens"]
    assert row["sampling/importance_sampling_ratio/max"] > 1.0


def test_a_correction_reports_the_sampler_apart_from_the_moving_policy(tiny_model_dir, tmp_path):
    loss = LossConfig(correction=CorrectionConfig(by=Correct.TRUNCATE))
    own = config(tmp_path / "run", num_steps=1, epochs_per_step=2, loss=loss)
    trainer(tiny_model_dir, own).train()
    row = metrics_of(tmp_path / "run")[0]
    assert row["sampling/importance_sampling_ratio/min"] == 1.0
    assert row["sampling/importance_sampling_ratio/max"] == 1.0
    assert row["sampling/sampling_logp_difference/mean"] == 0.0
    assert row["ratio/min"] < 1.0 < row["ratio/max"]


def test_a_reference_without_a_weight_is_measured_and_not_followed(tiny_model_dir, tmp_path):
    runs = {}
    for path in (None, str(tiny_model_dir)):
        own = config(tmp_path / f"run_{path is None}", model=ModelConfig(reference=path))
        runs[path] = trainer(tiny_model_dir, own)
        runs[path].train()
    without, with_it = runs.values()
    assert equal(weights(without), weights(with_it))
    assert [row["kl"] for row in metrics_of(tmp_path / "run_True")] == [0] * 4
    assert all(row["kl"] > 0 for row in metrics_of(tmp_path / "run_False")[1:])


def test_trees_outlast_a_step_and_say_how_old_their_tokens_are(tiny_model_dir, tmp_path):
    trainer(tiny_model_dir, unfinished(tmp_path / "run")).train()
    rows = metrics_of(tmp_path / "run")
    assert rows[0]["tree/stale_token_frac"] == 0
    assert max(row["tree/stale_token_frac"] for row in rows) > 0
    assert all(row["tree/sampled"] >= 3 for row in rows)
    assert rows[0]["sampling/importance_sampling_ratio/max"] >= 1.0


def test_unfinished_trees_and_a_temperature_schedule_exclude_each_other():
    search = SearchConfig(branch={"by": "segment_entropy", "schedule": "linear"})
    with pytest.raises(InvalidConfigError, match="max_unfinished_trees = 2"):
        TrainConfig(search=search, max_unfinished_trees=2)


def test_run_ends_with_the_step_that_spends_its_tokens_and_its_schedule_with_it(
    tiny_model_dir, tmp_path
):
    own = config(tmp_path / "run", num_steps=100, max_sampled_tokens=50)
    result = trainer(tiny_model_dir, own).train()
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tokens = [row["num_tokens"] for row in rows]
    assert result.num_steps == len(rows) < 100
    assert tokens[-1] >= 50 > ([0, *tokens])[-2]
    resumed = trainer(tiny_model_dir, own).train(resume=True)
    assert resumed.num_steps == result.num_steps


def test_learning_rate_follows_the_tokens_where_they_are_ahead_of_the_steps():
    own = OptimizerConfig(learning_rate=1.0, warmup_steps=0, final_fraction=0.0)
    assert learning_rate(1, 101, own, spent=0.75) == pytest.approx(0.25)
    assert learning_rate(50, 101, own, spent=0.1) == pytest.approx(0.5)


def test_unknown_preset_is_refused_before_anything_is_sampled(tiny_model_dir, tmp_path):
    plan = config(tmp_path / "run", advantage=AdvantageConfig(preset="trepo"))
    with pytest.raises(InvalidConfigError, match="did you mean treepo"):
        trainer(tiny_model_dir, plan)


def test_run_computes_with_the_threads_of_its_config(tiny_model_dir, tmp_path):
    trainer(tiny_model_dir, config(tmp_path / "run", num_threads=2))
    assert torch.get_num_threads() == 2


def test_attention_without_a_gradient_is_refused_before_the_run(tiny_model_dir, tmp_path):
    plan = config(tmp_path / "run", update=UpdateConfig(attention="flex"))
    with pytest.raises(InvalidConfigError, match=r"update\.attention=flex"):
        trainer(tiny_model_dir, plan)


def test_learning_rate_zero_leaves_the_weights_alone(tiny_model_dir, tmp_path):
    own = trainer(
        tiny_model_dir,
        config(tmp_path / "run", num_steps=1, optimizer=OptimizerConfig(learning_rate=0)),
    )
    first = weights(own)
    own.train()
    assert equal(first, weights(own))


def test_shuffled_rewards_train_on_other_rewards_and_report_the_true_ones(
    finished, tiny_model_dir, tmp_path
):
    shuffled = RewardConfig(num_workers=0, shuffle=True)
    own = trainer(tiny_model_dir, config(tmp_path / "run", num_steps=1, reward=shuffled))
    own.train()
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    lines = (finished[0].run_dir / "metrics.jsonl").read_text().splitlines()
    true = json.loads(lines[0])
    assert row["reward"] == true["reward"]
    assert row["loss"] != true["loss"]


def test_steps_without_signal_are_said_and_leave_the_weights_alone(
    tiny_model_dir, tmp_path, capsys
):
    own = trainer(
        tiny_model_dir,
        config(tmp_path / "run", num_steps=5, save_every=0, prompts_per_step=1),
        lambda completions, **columns: [0.0] * len(completions),
    )
    first = weights(own)
    own.train()
    assert equal(first, weights(own))
    assert "alarm: 5 steps without a learning signal" in capsys.readouterr().err


def test_missing_rewards_are_counted_and_their_trees_left_out(tiny_model_dir, tmp_path, capsys):
    own = trainer(
        tiny_model_dir,
        config(tmp_path / "run", num_steps=1),
        lambda completions, **columns: [None, *count_ones(completions)[1:]],
    )
    own.train()
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["tree/sampled"] == 3
    assert row["tree/kept"] <= 2


def test_missing_trees_are_sampled_again_up_to_the_limit(tiny_model_dir, tmp_path):
    own = config(tmp_path / "run", num_steps=1, max_sampling_batches=3)
    trainer(tiny_model_dir, own, lambda completions, **_: [0.0] * len(completions)).train()
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["tree/sampled"] == 9
    assert checkpoint.load_state(tmp_path / "run" / "checkpoints" / "step_1").cursor == 9


def test_logits_that_are_not_finite_stop_the_run_with_a_clear_error(tiny_model_dir, tmp_path):
    own = trainer(tiny_model_dir, config(tmp_path / "run", eval=EvalConfig(num_prompts=0)))
    with torch.no_grad():
        next(own.engine.model.parameters()).fill_(math.nan)
    with pytest.raises(NotFiniteError):
        own.train()


def test_trees_have_a_signal_when_their_rewards_are_known_and_differ():
    rewards = np.array([0, 1, 1, 1, 0, math.nan, 0.5, 0.25], dtype=np.float32)
    kept = trees_with_signal(rewards, np.array([0, 2, 4, 6, 8], dtype=np.int32))
    assert kept.tolist() == [0, 3]


def test_rewards_that_are_equal_in_float32_agree():
    rewards = np.array([0.3] * 7 + [0.3] * 6 + [0.5] + [math.nan] * 7, dtype=np.float32)
    assert rewards[:7].std() > 0  # The mean is rounded.
    found = reward_metrics(rewards, np.array([0, 7, 14, 21], dtype=np.int32))
    assert found["frac_reward_zero_std"] == pytest.approx(2 / 3)
    assert found["frac_reward_missing"] == pytest.approx(7 / 21)
    assert found["reward"] == pytest.approx((13 * 0.3 + 0.5) / 14)


def test_completion_that_the_context_cuts_is_punished_as_the_longest(tiny_model_dir, tmp_path):
    own = config(
        tmp_path,
        engine=EngineConfig(max_model_len=12),
        reward=RewardConfig(num_workers=0, overlong_buffer=2, overlong_penalty=3.0),
        prompts_per_step=8,
    )
    rows = [{"prompt": prompt} for prompt in ("12*3=", "7=")]
    model, tokenizer = load_model(str(tiny_model_dir), own.engine)

    def rank(completions, **columns):
        return [float(index) for index in range(len(completions))]

    owner = Trainer(model, tokenizer, rank, rows, None, own)
    collector = Collector(owner.engine, owner._scorer, owner._source, own, check=lambda *_: None)
    batch = collector.collect(0, 0.0)
    forest = batch.sampled
    assert batch.kept.num_paths == forest.num_paths
    punishment = batch.kept.paths.reward - forest.paths.reward
    prompt_len = forest.trees.prompt_len[forest.paths.tree]
    assert own.search.completion_len == 12 > 12 - prompt_len.min()
    missing = 12 - forest.paths.length
    assert {0, 1} <= set(missing)
    np.testing.assert_array_equal(punishment, np.interp(missing, [0, 1, 2], [-3.0, -1.5, 0.0]))
    assert {2, 5} == set(prompt_len[missing == 0])


def test_prompts_come_once_a_pass_in_a_new_order_and_at_any_cursor():
    source = PromptSource(ROWS, seed=3)
    count = len(ROWS)
    passes = [[row["prompt"] for row in source.take(n * count, count)] for n in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(row["prompt"] for row in ROWS)
    assert passes[0] != passes[1]
    across = PromptSource(ROWS, seed=3).take(count - 2, 4)
    assert [row["prompt"] for row in across] == [*passes[0][-2:], *passes[1][:2]]


def test_empty_data_is_refused():
    with pytest.raises(DataError, match="empty"):
        PromptSource([], seed=0)


@pytest.mark.parametrize("which", ["training", "evaluation"])
@pytest.mark.parametrize(
    ("row", "reason"),
    [({"prompt": "1" * 300}, "row 13: the prompt has 300 tokens"), ({"text": "a"}, "no 'prompt'")],
)
def test_rows_that_cannot_be_used_are_named_before_the_run(
    tiny_model_dir, tmp_path, which, row, reason
):
    plan = config(tmp_path / "run", eval=EvalConfig(num_prompts=20))
    model, tokenizer = load_model(str(tiny_model_dir), plan.engine)
    data = {"training": ROWS, "evaluation": ROWS, which: [*ROWS, row]}
    with pytest.raises(DataError, match=f"the {which} data set cannot be used: .*{reason}"):
        Trainer(model, tokenizer, count_ones, data["training"], data["evaluation"], plan)
    assert not (tmp_path / "run").exists()


class Columns(list):
    """Rows whose slices are columns, as those of a `datasets.Dataset` are."""

    def __getitem__(self, index):
        if isinstance(index, slice):
            return {name: [row[name] for row in list(self)[index]] for name in self[0]}
        return super().__getitem__(index)


def test_data_sets_whose_slices_are_columns_are_read_by_row(tiny_model_dir, tmp_path):
    plan = config(tmp_path / "run", num_steps=1)
    model, tokenizer = load_model(str(tiny_model_dir), plan.engine)
    result = Trainer(model, tokenizer, count_ones, Columns(ROWS), Columns(ROWS), plan).train()
    assert result.after.num_prompts == 2


@pytest.mark.parametrize(("trees", "steps"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (12, 3)])
def test_few_trees_make_few_optimizer_steps_and_not_small_ones(tmp_path, trees, steps):
    own = config(tmp_path, prompts_per_step=12, minibatches_per_step=3)
    assert num_minibatches(trees, own) == steps


def test_learning_rate_rises_over_the_warm_up_and_falls_to_its_final_fraction():
    own = OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1)
    rates = [learning_rate(step, 10, own) for step in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[-1] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(9, 10, own.replace(schedule="constant")) == 1.0


def parts_of(model_dir, plan, **others):
    """Arguments of a trainer, some of them replaced."""
    model, tokenizer = load_model(str(model_dir), plan.engine)
    parts = {"model": model, "tokenizer": tokenizer, "reward_funcs": count_ones}
    return {**parts, "train_dataset": ROWS, "eval_dataset": ROWS[:2], "config": plan, **others}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"model": "a/model"}, r"the model is the path a/model; .*from_pretrained\(path\)"),
        ({"model": Path("a/model")}, "the model is the path a/model"),
        ({"model": torch.nn.Linear(2, 2)}, "the model is a Linear, not a transformers model"),
        ({"tokenizer": None}, "training needs a tokenizer"),
        ({"train_dataset": {"train": ROWS}}, r"a dict of \['train'\]; choose one"),
        ({"eval_dataset": {"test": ROWS}}, r"a dict of \['test'\]; choose one"),
        ({"train_dataset": map(dict, ROWS)}, r"a map, .*; hand in list\(dataset\)"),
    ],
)
def test_parts_of_another_kind_are_refused_with_what_to_hand_in(
    tiny_model_dir, tmp_path, others, message
):
    with pytest.raises(InvalidInputError, match=message):
        Trainer(**parts_of(tiny_model_dir, config(tmp_path / "run"), **others))


def test_float16_weights_are_refused(tiny_model_dir, tmp_path):
    parts = parts_of(tiny_model_dir, config(tmp_path / "run"))
    parts["model"].half()
    with pytest.raises(InvalidConfigError, match="the model is float16"):
        Trainer(**parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_trained_in_bfloat16_with_a_warning(tiny_model_dir, tmp_path, capsys, dtype):
    anywhere = EngineConfig(packing="never", attention="torch")  # Not all processors are fast.
    plan = config(tmp_path / "run", num_steps=1, engine=anywhere, eval=EvalConfig(num_prompts=0))
    parts = parts_of(tiny_model_dir, plan)
    parts["model"].to(dtype)
    own = Trainer(**parts)
    first = weights(own)
    own.train()
    assert not equal(first, weights(own))
    assert {value.dtype for value in weights(own).values()} == {dtype}
    warning = "warning: the trained weights are torch.bfloat16"
    assert (warning in capsys.readouterr().err) == (dtype is torch.bfloat16)


@pytest.mark.parametrize("which", ["train_dataset", "eval_dataset"])
def test_reward_that_lacks_a_column_is_refused_before_anything_is_sampled(
    tiny_model_dir, tmp_path, which
):
    def against_answers(completions, answer, **columns):
        raise AssertionError

    rows = [{"prompt": row["prompt"]} for row in ROWS]
    plan = config(tmp_path / "run")
    parts = parts_of(tiny_model_dir, plan, reward_funcs=against_answers, **{which: rows})
    with pytest.raises(RewardError, match=r"against_answers: .*'answer'"):
        Trainer(**parts)
    assert not (tmp_path / "run").exists()


def test_each_step_is_handed_to_a_callback_with_the_numbers_of_the_log(tiny_model_dir, tmp_path):
    seen = []

    def keep(step, metrics):
        known = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        seen.append({"step": step, **known})

    plan = config(tmp_path / "run", num_steps=3, eval=EvalConfig(num_prompts=0))
    trainer(tiny_model_dir, plan).train(on_step=keep)
    assert len(seen) == 3
    assert seen == metrics_of(tmp_path / "run")


def collector_of(owner):
    return Collector(
        owner.engine, owner._scorer, owner._source, owner.config, check=lambda *_: None
    )


def test_trees_whose_scores_agree_are_not_kept_for_their_punishments(tiny_model_dir, tmp_path):
    reward = RewardConfig(num_workers=0, overlong_buffer=12)
    own = config(tmp_path / "run", reward=reward)
    owner = trainer(tiny_model_dir, own, lambda completions, **_: [1.0] * len(completions))
    collector = collector_of(owner)
    batch = collector.collect(0, 0.0)
    punishment = np.split(collector._overlong(batch.sampled), batch.sampled.trees.path_start[1:-1])
    assert any(len(set(of_tree)) > 1 for of_tree in punishment)
    assert batch.kept is None
    assert batch.metrics["tree/kept"] == 0


def test_prompt_that_is_sampled_again_alone_and_cannot_be_scored_does_not_end_the_run(
    tiny_model_dir, tmp_path
):
    own = config(
        tmp_path / "run",
        num_steps=1,
        prompts_per_step=2,
        max_sampling_batches=2,
        eval=EvalConfig(num_prompts=0),
    )
    first, _, third = (row["prompt"] for row in PromptSource(ROWS, own.seed).take(0, 3))

    def differs_for_the_first(completions, prompts, **columns):
        if third in prompts:
            raise ValueError("not this prompt")
        return [float(i) if prompt == first else 0.0 for i, prompt in enumerate(prompts)]

    trainer(tiny_model_dir, own, differs_for_the_first).train()
    (row,) = metrics_of(tmp_path / "run")
    assert (row["tree/sampled"], row["tree/kept"], row["reward/errors"]) == (3, 1, 4)


def test_rewards_that_fail_on_everything_of_a_step_end_the_run(tiny_model_dir, tmp_path):
    def fails(completions, **columns):
        raise ValueError("no judge")

    own = config(tmp_path / "run", max_sampling_batches=2, eval=EvalConfig(num_prompts=0))
    with pytest.raises(RewardError, match="failed on all 12 completions: ValueError: no judge"):
        trainer(tiny_model_dir, own, fails).train()


def test_trees_stay_open_where_a_step_samples_a_few_again(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("treepo.train.collect._MAX_KEPT_TREES", 2)
    own = config(
        tmp_path / "run",
        search=SearchConfig(width=3, segment_len=3, max_depth=9),
        engine=EngineConfig(max_num_seqs=7),  # Later trees wait, so that they end later.
        prompts_per_step=6,
        max_unfinished_trees=1,
        max_sampling_batches=2,
    )
    agreeing = PromptSource(ROWS, own.seed).take(0, 1)[0]["prompt"]

    def agree_on_one(completions, prompts, **columns):
        return [0.0 if prompt == agreeing else float(i) for i, prompt in enumerate(prompts)]

    collector = collector_of(trainer(tiny_model_dir, own, agree_on_one))
    metrics = collector.collect(0, 0.0).metrics
    collector.commit()
    assert (metrics["tree/sampled"], metrics["tree/kept"]) == (7, 6)
    assert collector.open_trees() is not None
