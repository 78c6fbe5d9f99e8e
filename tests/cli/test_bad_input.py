"""A user's mistake is one line on stderr and exit code 2."""

import json
import subprocess
import sys

import pytest

from treepo.cli.main import main
from treepo.config import TrainConfig

pytestmark = pytest.mark.usefixtures("single_thread")

SMALL = ["num_steps=1", "prompts_per_step=2", "eval.num_prompts=0", "reward.num_workers=0"]


def fails(capsys, *words):
    """Runs the command, checks exit code and shape of the message, returns the message."""
    code = main([str(word) for word in words])
    err = capsys.readouterr().err
    messages = [line for line in err.splitlines() if line.startswith("treepo: error: ")]
    assert code == 2, err
    assert len(messages) == 1
    assert "Traceback" not in err
    return messages[0]


@pytest.fixture
def train(capsys, tmp_path, tiny_model_dir):
    """Runs a training command on the tiny model that has to fail; returns its message."""

    def run(*words):
        model = [] if "--model" in words else ["--model", tiny_model_dir]
        return fails(capsys, "train", *model, *SMALL, f"output_dir={tmp_path / 'run'}", *words)

    return run


def test_command_in_a_process_of_its_own_prints_one_line_and_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "treepo", "train", "--search.widht", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "did you mean 'search.width'" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["--quick"], "unknown option '--quick'"),
        (["train", "search.width=0"], "search.width must be at least 1, got 0"),
        (["train", "serach.width=4"], "did you mean 'search'"),
        (["train", "--data", "no/such.jsonl"], "cannot read no/such.jsonl: No such file"),
        (["train", "--config", "no/such.yaml"], "cannot read config no/such.yaml"),
        (["train", "--resume", "no/run"], "no/run is not a run"),
        (["train", "--resume", "no/run", "--model", "x"], "--model cannot be changed by --resume"),
        (["rollout", "--prompts"], "expected one argument"),
        (["rollout", "--num-prompts", "0"], "--num-prompts must be at least 1"),
        (["rollout", "--model", "x"], "--model needs --prompts"),
        (["plan", "--rates", "0.1,x"], "--rates must be numbers from 0 to 1, like 0.1,0.2, got"),
        (["plan", "--rates", "1.5"], "--rates must be numbers from 0 to 1"),
        (["plan", "--trees", "0"], "--trees must be from 1 to"),
        (["plan", "--prompt-len", "few"], "invalid int value: 'few'"),
        (["plan", "--prompt-len", "300", "engine.max_model_len=256"], "prompt of 300 tokens"),
        (["plan", "no/such.yaml"], "cannot read config no/such.yaml"),
        (["plan", "a.yaml", "--config", "b.yaml"], "two config files, b.yaml and a.yaml"),
        (["plan", "--presets", "search.width=3"], "--presets takes nothing else"),
        (["plan", "search.preset=ppo"], "search.preset must be one of treepo"),
        (["plan", "--model", "./no/model"], "there is no folder ./no/model"),
        (["eval", "eval.num_prompts=0"], "nothing to evaluate"),
        (["eval", "--model", ""], "--model is empty"),
        (["eval", "--data", ""], "--data is empty"),
        (["train", "--reward", ""], "--reward is empty"),
        (["eval", "sampling.temperature=0.5"], "an evaluation has eval.temperature, eval.seed"),
        (["eval", "--sampling.top-p", "0.5"], "'sampling.top_p' is about rollouts"),
        (["eval", "--data.eval", "sampling.jsonl"], "cannot read sampling.jsonl"),
        (["eval", "seed=3"], "an evaluation has eval.temperature, eval.seed"),
        (["train", "--quiet"], "unknown config key 'quiet'"),
        (["train", "--seed"], "option '--seed' needs a value"),
        (["train", "--width", "4"], "did you mean 'search.width'"),
        (["train", "search.width=1"], "search.width must be at least 2 to train, got 1"),
        (["train", "search.width=3000000000"], "search.width must be at most"),
        (["train", "search.segment_len=3000000000"], "search.segment_len must be at most"),
        (["train", f"seed={2**64}"], "seed must be at most"),
        (["train", "engine.num_blocks=1000000000000"], "engine.num_blocks must be at most"),
        (["train", "num_threads=1000000"], "num_threads must be at most"),
        (["train", "sampling.temperature=1e-40"], "temperature must be 0 (greedy) or at least"),
        (["train", "advantage.preset=ppo"], "unknown advantage preset 'ppo', did you mean vineppo"),
        (["rollout", "engine.device=gpu"], "engine.device 'gpu' cannot be used"),
        (["rollout", "engine.kv_cache_gib=1e9"], "out of memory; lower engine.kv_cache_gib"),
        (["rollout", "--out", "/dev/full"], "cannot write /dev/full: it is not a file"),
        (["rollout", "--out", "/proc/no/x"], "cannot write /proc/no/x: No such file"),
        (["eval", "--out", "/proc"], "cannot write /proc: it is not a file"),
    ],
)
def test_wrong_words_are_named(capsys, words, message):
    assert message in fails(capsys, *words)


def test_empty_data_is_named(train, write_rows):
    file = write_rows([])
    assert f"{file} is empty" in train("--data", file)


def test_bad_line_of_the_data_is_named(train, write_rows):
    assert "line 2: no 'prompt'" in train("--data", write_rows([{"prompt": "1"}, {"text": "2"}]))


def test_prompt_that_the_tokenizer_cannot_encode_is_named(capsys, write_rows):
    message = fails(capsys, "rollout", "--prompts", write_rows([{"prompt": "hello"}]))
    assert "cannot encode the prompt 'hello'" in message


@pytest.mark.parametrize(
    ("model", "reason"),
    [("./no/model", ""), ("no_model", ", and it cannot be loaded from the hub")],
)
def test_missing_model_is_named(train, write_rows, model, reason):
    message = train("--model", model, "--data", write_rows([{"prompt": "1", "answer": "1"}]))
    assert f"there is no folder {model}{reason}" in message


def test_unsupported_model_class_is_named(train, tmp_path, tiny_model_dir, write_rows):
    from transformers import AutoTokenizer, T5Config

    folder = tmp_path / "t5"
    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    message = train("--model", folder, "--data", write_rows([{"prompt": "1", "answer": "1"}]))
    assert "T5ForConditionalGeneration is an encoder-decoder model" in message


def test_prompt_longer_than_the_context_is_refused(train, write_rows):
    message = train("--data", write_rows([{"prompt": "12" * 60, "answer": "1"}]))
    assert "120 tokens" in message
    assert "96" in message


def test_pool_that_cannot_hold_one_path_is_refused(train, write_rows):
    rows = [{"prompt": "12*3=", "answer": "1"}]
    message = train("--data", write_rows(rows), "engine.num_blocks=2", "engine.block_size=4")
    assert "block" in message


def test_unknown_reward_is_named(train, write_rows):
    rows = write_rows([{"prompt": "12*3=", "answer": "1"}])
    assert "did you mean exact_match" in train("--data", rows, "--reward", "exact_mach")


def test_reward_without_its_column_is_refused(train, write_rows):
    assert "answer" in train("--data", write_rows([{"prompt": "12*3="}]))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", "returned 1 values, expected 16"),
        ("return 1.0", "returned float, expected a list of 16 values"),
        ("return ['high'] * len(completions)", "'high'"),
        ("raise KeyError('gold')", "the reward failed on all 16 completions: KeyError"),
    ],
)
def test_reward_that_breaks_its_contract_is_refused(
    train, write_rows, tmp_path, monkeypatch, body, message
):
    name = f"reward_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def score(completions, **columns):\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    rows = write_rows([{"prompt": "12*3="}])
    assert message in train("--data", rows, "--reward", f"{name}:score")


def test_weights_that_are_not_finite_are_refused(train, tmp_path, tiny_model_dir, write_rows):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "nan")
    rows = write_rows([{"prompt": "12*3=", "answer": "1"}])
    message = train("--model", tmp_path / "nan", "--data", rows)
    assert "lm_head.weight holds NaN" in message


def test_run_without_a_checkpoint_folder_is_not_touched_by_a_mistake(train, tmp_path):
    train("search.width=0")
    assert not (tmp_path / "run").exists()


def test_missing_folder_beside_others_is_not_looked_for_on_the_hub(train, tmp_path, write_rows):
    rows = write_rows([{"prompt": "1", "answer": "1"}])
    message = train("--model", tmp_path / "nope", "--data", rows)
    assert f"there is no folder {tmp_path}/nope; give one" in message


def test_run_that_failed_before_it_measured_anything_does_not_block_its_folder(train, write_rows):
    rows = write_rows([{"prompt": "12" * 60, "answer": "1"}])
    assert "120 tokens" in train("--data", rows)
    assert "120 tokens" in train("--data", rows)


def test_folder_that_cannot_be_written_is_refused(train, write_rows):
    rows = write_rows([{"prompt": "12*3=", "answer": "1"}])
    message = train("--data", rows, "output_dir=/proc/nope")
    assert "cannot write the run's folder output_dir=/proc/nope" in message


def test_output_folder_that_is_a_file_is_refused(train, tmp_path, write_rows):
    rows = write_rows([{"prompt": "12*3=", "answer": "1"}])
    (tmp_path / "run").write_text("")
    assert "output_dir" in train("--data", rows)


def test_tree_that_no_microbatch_can_hold_is_refused(train, write_rows, tmp_path, monkeypatch):
    (tmp_path / "ones_reward.py").write_text(
        "def score(completions, **columns):\n    return [c.count('1') for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    rows = write_rows([{"prompt": "12*3="}, {"prompt": "13*3="}])
    limits = ["max_tokens_per_microbatch=8", "update.activations=recompute"]
    message = train("--data", rows, "--reward", "ones_reward:score", *limits)
    assert "max_tokens_per_microbatch" in message


def test_missing_column_is_found_before_the_model_is_loaded(capsys, tmp_path, write_rows):
    rows = write_rows([{"prompt": "12*3="}])
    words = ["--model", tmp_path / "none", "--data", rows, "--reward", "last_number"]
    for command in ("train", "eval"):
        assert "missing a required argument: 'answer'" in fails(capsys, command, *words)


def test_missing_column_of_the_held_out_data_is_found_before_the_model_is_loaded(
    capsys, tmp_path, write_rows
):
    rows = write_rows([{"prompt": "12*3=", "answer": "36"}])
    held_out = write_rows([{"prompt": "12*3="}], "held_out.jsonl")
    words = ["--model", tmp_path / "none", "--data", rows, "--reward", "last_number"]
    message = fails(capsys, "train", *words, f"data.eval={held_out}")
    assert "missing a required argument: 'answer'" in message


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("output_dir=other", "output_dir=other and --resume"),
        ("model.path=./other", "model.path=./other: a resumed run goes on with the weights"),
    ],
)
def test_folder_and_model_of_a_resumed_run_stay(capsys, tmp_path, word, message):
    config = TrainConfig(output_dir=str(tmp_path))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert message in fails(capsys, "train", "--resume", tmp_path, word)


def test_config_of_a_run_with_an_unknown_key_names_the_file_on_resume(capsys, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("search:\n  widht: 3\n")
    message = fails(capsys, "train", "--resume", tmp_path)
    assert f"{file}: unknown config key 'search.widht'" in message


def test_damaged_checkpoint_is_named_and_what_to_do(capsys, tmp_path):
    run = tmp_path / "run"
    words = [*SMALL, "search.segment_len=2", "keep_checkpoints=1", f"output_dir={run}"]
    assert main(["train", *words]) == 0
    weights = run / "checkpoints" / "step_1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    message = fails(capsys, "train", "--resume", run, "num_steps=2")
    assert str(weights.parent) in message
    assert "delete" in message


def test_full_disk_is_one_line(capsys, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device", "some/file")

    monkeypatch.setattr("treepo.cli.options.load_config", full)
    assert "some/file: No space left on device" in fails(capsys, "train")


def test_config_file_with_an_unknown_key_is_refused(capsys, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"optimizer": {"lr": 1}}))
    message = fails(capsys, "train", "--config", file)
    assert "unknown config key 'optimizer.lr'" in message


@pytest.mark.parametrize("has_file", [False, True])
@pytest.mark.parametrize("words", [["--reward", "last_number"], ["reward.name=last_number"]])
def test_rollout_with_a_reward_of_the_command_line_and_no_answers_is_refused(
    capsys, tmp_path, write_rows, words, has_file
):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\n")
    given = [*(["--config", file] if has_file else []), "--out", tmp_path / "forest.safetensors"]
    prompts = write_rows([{"prompt": "37539*9="}])
    message = fails(capsys, "rollout", *given, "--prompts", prompts, *words)
    assert "missing a required argument: 'answer'" in message
