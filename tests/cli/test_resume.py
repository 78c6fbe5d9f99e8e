"""What stays of a run that ends early, and how it goes on."""

import json
import re
import shutil
from itertools import count

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file
from tiny_runs import (
    ROWS,
    BreakAfter,
    StopAfter,
    config,
    count_ones,
    equal,
    trainer,
    unfinished,
    weights,
)

from treepo.cli.main import main
from treepo.config import (
    EvalConfig,
    LossConfig,
    TrainConfig,
)
from treepo.engine.load import load_model
from treepo.errors import (
    CheckpointError,
    InvalidConfigError,
    InvalidInputError,
    PromptTooLongError,
    RewardError,
    TreepoError,
)
from treepo.train import checkpoint
from treepo.train.collect import Collector
from treepo.train.dataset import PromptSource
from treepo.train.interrupt import TrainingInterrupted
from treepo.train.run_folder import read_config
from treepo.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("single_thread")


def test_only_the_newest_checkpoints_are_kept(finished):
    names = sorted(path.name for path in (finished[0].run_dir / "checkpoints").iterdir())
    assert names == ["step_3", "step_4"]


def test_nothing_in_a_run_is_pickled(finished):
    suffixes = {path.suffix for path in finished[0].run_dir.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".yaml", ".safetensors", ".jinja", ""}


def test_run_that_is_stopped_and_resumed_equals_one_that_is_not(finished, tiny_model_dir, tmp_path):
    own = config(tmp_path / "run")
    # Two calls evaluate the first weights, the fourth one scores the second step's trees.
    with pytest.raises(TrainingInterrupted) as caught:
        trainer(tiny_model_dir, own, StopAfter(4)).train()
    assert caught.value.step == 1
    resumed = trainer(tiny_model_dir, own)
    result = resumed.train(resume=True)
    assert equal(weights(resumed), finished[2])
    assert result.before.pass_at == finished[0].before.pass_at
    assert result.after.pass_at == finished[0].after.pass_at
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_run_stopped_before_its_first_step_resumes_to_the_same_weights(
    finished, tiny_model_dir, tmp_path
):
    own = config(tmp_path / "run")
    with pytest.raises(TrainingInterrupted) as caught:
        trainer(tiny_model_dir, own, StopAfter(1)).train()
    assert caught.value.step == 0
    resumed = trainer(tiny_model_dir, own)
    resumed.train(resume=True)
    assert equal(weights(resumed), finished[2])


def test_reward_that_breaks_in_mid_run_loses_no_finished_step(tiny_model_dir, tmp_path):
    plan = config(tmp_path / "run", save_every=0)
    evaluations = 2  # the evaluation before the first step scores samples and greedy answers
    with pytest.raises(RewardError):
        trainer(tiny_model_dir, plan, BreakAfter(evaluations + 2)).train()
    assert checkpoint.latest(tmp_path / "run").name == "step_1"


def test_prompt_that_grows_in_mid_run_loses_no_finished_step(tiny_model_dir, tmp_path):
    plan = config(tmp_path / "run", save_every=0, eval=EvalConfig(num_prompts=0), seed=1)
    rows = [*ROWS, {"prompt": "1", "answer": "1"}]
    model, tokenizer = load_model(str(tiny_model_dir), plan.engine)
    own = Trainer(model, tokenizer, count_ones, rows, None, plan)
    rows[-1]["prompt"] = "1" * 300
    with pytest.raises(PromptTooLongError):
        own.train()
    steps = PromptSource(rows, plan.seed).take(0, len(rows)).index(rows[-1]) // 3
    assert checkpoint.latest(tmp_path / "run").name == f"step_{steps}"


def test_evaluation_that_was_interrupted_is_made_up_for(tiny_model_dir, tmp_path):
    plan = config(tmp_path / "run", eval=EvalConfig(num_prompts=2, num_samples=2, every=2))
    # Two calls before, one each of two steps, then the evaluation's first.
    with pytest.raises(TrainingInterrupted) as caught:
        trainer(tiny_model_dir, plan, StopAfter(5)).train()
    assert caught.value.step == 2
    assert not (tmp_path / "run" / "eval" / "step_2.json").exists()
    trainer(tiny_model_dir, plan).train(resume=True)
    assert (tmp_path / "run" / "eval" / "step_2.json").exists()


def test_reference_of_a_resumed_run_is_still_the_first_model(tiny_model_dir, tmp_path):
    whole = config(tmp_path / "whole", loss=LossConfig(kl_weight=0.1))
    straight = trainer(tiny_model_dir, whole)
    straight.train()
    cut = config(tmp_path / "cut", loss=LossConfig(kl_weight=0.1))
    with pytest.raises(TrainingInterrupted):
        trainer(tiny_model_dir, cut, StopAfter(2)).train()
    resumed = trainer(tiny_model_dir, cut)
    resumed.train(resume=True)
    assert equal(weights(straight), weights(resumed))


@pytest.mark.parametrize("calls", [2, 4])
def test_interrupted_run_goes_on_with_its_unfinished_trees(tiny_model_dir, tmp_path, calls):
    straight = trainer(tiny_model_dir, unfinished(tmp_path / "straight"))
    straight.train()
    cut = unfinished(tmp_path / "cut")
    with pytest.raises(TrainingInterrupted):
        trainer(tiny_model_dir, cut, StopAfter(calls)).train()
    resumed = trainer(tiny_model_dir, cut)
    resumed.train(resume=True)
    assert equal(weights(straight), weights(resumed))


def test_step_that_fails_behind_its_rollout_leaves_the_unfinished_trees_of_the_step_before(
    tiny_model_dir, tmp_path, monkeypatch
):
    straight = trainer(tiny_model_dir, unfinished(tmp_path / "straight"))
    straight.train()
    cut = unfinished(tmp_path / "cut", save_every=0)
    failing, calls = trainer(tiny_model_dir, cut), []
    apply = failing._update.apply

    def fail_in_the_second_step(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise InvalidInputError("no")
        return apply(*arguments)

    monkeypatch.setattr(failing._update, "apply", fail_in_the_second_step)
    with pytest.raises(InvalidInputError):
        failing.train()
    saved = checkpoint.latest(tmp_path / "cut")
    assert saved.name == "step_1"
    assert checkpoint.load_open_trees(saved) is not None
    resumed = trainer(tiny_model_dir, cut)
    resumed.train(resume=True)
    assert equal(weights(straight), weights(resumed))


def test_trees_of_a_checkpoint_are_taken_up_once(tiny_model_dir, tmp_path):
    own = config(tmp_path / "run", max_unfinished_trees=2, max_sampling_batches=2)
    owner = trainer(tiny_model_dir, own, lambda completions, **_: [0.0] * len(completions))
    rollout = owner.engine.open_rollout(own.search)
    rollout.add([ROWS[0]["prompt"], ROWS[1]["prompt"]], [100, 101])
    # Rewards agree, so the step samples a second time; all trees of the first time end together.
    collector = Collector(
        owner.engine,
        owner._scorer,
        owner._source,
        own,
        check=lambda *_: None,
        open_trees=rollout.to_bytes(),
    )
    keys = collector.collect(0, 0.0).sampled.trees.key
    assert len(set(keys)) == len(keys) > 6


def test_half_written_checkpoint_is_ignored(finished, tiny_model_dir, tmp_path):
    own = config(tmp_path / "run", num_steps=2)
    trainer(tiny_model_dir, own).train()
    newest = checkpoint.latest(tmp_path / "run")
    (newest / checkpoint.MARKER).unlink()
    (newest / "model.safetensors").write_bytes(b"half")
    (tmp_path / "run" / "checkpoints" / ".writing_step_9").mkdir()
    assert checkpoint.latest(tmp_path / "run").name == "step_1"
    resumed = trainer(tiny_model_dir, own)
    resumed.train(resume=True)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step_1", "step_2"]


def test_full_disk_is_named_and_leaves_earlier_checkpoints(tiny_model_dir, tmp_path, monkeypatch):
    own = config(tmp_path / "run", num_steps=2, eval=EvalConfig(num_prompts=0))

    def full(tensors, file):
        if "step_2" in str(file):
            raise SafetensorError("I/O error: No space left on device")
        save_file(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*step_2: .*No space left"):
        trainer(tiny_model_dir, own).train()
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["step_1"]


def test_damaged_optimizer_state_is_named_and_how_to_go_on(finished, tiny_model_dir, tmp_path):
    newest = checkpoint.latest(finished[0].run_dir)
    folder = tmp_path / "step_4"
    shutil.copytree(newest, folder)
    (folder / "training" / "optimizer.safetensors").write_bytes(b"half")
    own = trainer(tiny_model_dir, config(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=f"if {folder} is damaged, delete it"):
        checkpoint.load_optimizer(folder, own.engine.model, None)


def test_checkpoint_that_is_not_complete_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no COMPLETE file"):
        checkpoint.load_state(tmp_path)


def test_finished_run_is_not_overwritten(finished, tiny_model_dir):
    with pytest.raises(InvalidConfigError, match="holds a run already"):
        trainer(tiny_model_dir, config(finished[0].run_dir)).train()


def test_folder_with_a_config_that_no_run_wrote_is_refused_and_kept(tiny_model_dir, tmp_path):
    (tmp_path / "config.yaml").write_text("num_steps: 7\n")
    with pytest.raises(InvalidConfigError, match=r"a config\.yaml that no run wrote"):
        trainer(tiny_model_dir, config(tmp_path)).train()
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
    assert read_config(tmp_path) == {"num_steps": 7}


def test_each_start_of_a_run_adds_its_environment(tiny_model_dir, tmp_path):
    own = config(tmp_path / "run", num_steps=1, eval=EvalConfig(num_prompts=0))
    for is_resumed in (False, True):
        trainer(tiny_model_dir, own).train(resume=is_resumed)
    starts = json.loads((tmp_path / "run" / "env.json").read_text())
    assert len(starts) == 2
    assert all({"treepo", "packages", "command", "started"} <= set(start) for start in starts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_unfinished_trees": 0}, "max_unfinished_trees=0 would lose"),
        ({"sampling": {"temperature": 0.5}}, r"made with sampling\.temperature = 1\.0, and it is"),
    ],
)
def test_resume_that_is_refused_leaves_the_config_and_the_run_as_they_were(
    tiny_model_dir, tmp_path, changes, message
):
    own = unfinished(tmp_path / "run", save_every=0, eval=EvalConfig(num_prompts=0))
    with pytest.raises(TrainingInterrupted):
        trainer(tiny_model_dir, own, StopAfter(2)).train()
    file = tmp_path / "run" / "config.yaml"
    before = file.read_text()
    with pytest.raises(TreepoError, match=message):
        trainer(tiny_model_dir, own.replace(**changes)).train(resume=True)
    assert file.read_text() == before
    result = trainer(tiny_model_dir, TrainConfig.from_yaml(file)).train(resume=True)
    assert result.num_steps == own.num_steps


def test_run_folder_holds_the_whole_config(finished):
    stored = TrainConfig.from_dict(read_config(finished[0].run_dir))
    assert stored == config(finished[0].run_dir)


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_run_of_own_rows_and_rewards_is_refused_by_the_command_and_goes_on_in_python(
    tiny_model_dir, tmp_path, capsys
):
    own = config(tmp_path / "run", eval=EvalConfig(num_prompts=0))
    with pytest.raises(TrainingInterrupted):
        trainer(tiny_model_dir, own, StopAfter(2)).train()
    before = files_of(tmp_path)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert re.search(
        r"run was started with rewards \['count_ones'\].*Trainer\(\.\.\)\.train\(resume=True\)",
        capsys.readouterr().err,
    )
    assert files_of(tmp_path) == before
    assert trainer(tiny_model_dir, own).train(resume=True).num_steps == 4


def count_twos(completions, **columns):
    return [text.count("2") / 4 for text in completions]


@pytest.mark.parametrize(
    ("rows", "reward", "message"),
    [
        (ROWS[:-1], count_ones, "was started with 13 prompts, not 12"),
        ([*ROWS[:-1], {"prompt": "7=", "answer": "1"}], count_ones, "with other prompts"),
        (ROWS, count_twos, r"with rewards \['count_ones'\], not \['count_twos'\]"),
        (ROWS, [count_ones, count_twos], r"not \['count_ones', 'count_twos'\]"),
    ],
)
def test_resume_with_other_rows_or_rewards_is_refused_and_changes_nothing(
    finished, tiny_model_dir, rows, reward, message
):
    folder = finished[0].run_dir
    before, own = files_of(folder), config(folder)
    model, tokenizer = load_model(str(tiny_model_dir), own.engine)
    with pytest.raises(InvalidConfigError, match=message):
        Trainer(model, tokenizer, reward, rows, ROWS[:2], own).train(resume=True)
    assert files_of(folder) == before


def test_rows_that_a_run_never_reads_may_be_unusable(tiny_model_dir, tmp_path):
    rows = [*ROWS, {"prompt": "1" * 300}]
    seed = next(seed for seed in count() if rows[-1] not in PromptSource(rows, seed).take(0, 3))
    own = config(tmp_path / "run", num_steps=1, seed=seed, eval=EvalConfig(num_prompts=0))
    for is_resumed in (False, True):
        model, tokenizer = load_model(str(tiny_model_dir), own.engine)
        result = Trainer(model, tokenizer, count_ones, rows, None, own).train(resume=is_resumed)
        assert result.num_steps == 1


def test_checkpoint_has_no_tensors_beside_those_of_its_model(finished):
    saved = checkpoint.latest(finished[0].run_dir)
    assert [file.name for file in saved.glob("*.safetensors")] == ["model.safetensors"]
    assert (saved / "training" / "optimizer.safetensors").is_file()


def test_model_that_transformers_refuses_to_save_ends_the_run_with_the_reason(
    tiny_model_dir, tmp_path
):
    own = trainer(
        tiny_model_dir, config(tmp_path / "run", num_steps=1, eval=EvalConfig(num_prompts=0))
    )
    own.engine.model.generation_config.update(do_sample=False, temperature=0.5)
    with pytest.raises(CheckpointError, match=r"cannot be saved: .*temperature"):
        own.train()
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
