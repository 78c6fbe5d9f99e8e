import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from treepo import core
from treepo.cli.main import main
from treepo.cli.options import describe
from treepo.cli.picture import picture
from treepo.cli.report import before_after, counted
from treepo.config import TrainConfig
from treepo.errors import InvalidInputError
from treepo.evaluate import Evaluation, pass_at_k
from treepo.forest import Forest
from treepo.train.interrupt import Interruption
from treepo.train.progress import Progress

pytestmark = pytest.mark.usefixtures("single_thread")

SMALL = [
    "prompts_per_step=2",
    "eval.num_prompts=2",
    "eval.num_samples=2",
    "reward.num_workers=0",
]


def evaluation(**changes):
    values = {
        "num_prompts": 4,
        "num_samples": 2,
        "temperature": 1.0,
        "accuracy": 0.25,
        "greedy_accuracy": 0.5,
        "mean_reward": 0.25,
        "clipped_ratio": 0.0,
        "pass_at": {1: 0.25, 2: 0.75},
        "num_unscored": 0,
        "num_tokens": 100,
        "seconds": 1.0,
    }
    return Evaluation(**{**values, **changes})


def test_train_on_the_embedded_task_ends_with_table_folder_and_next_command(capsys, tmp_path):
    folder = tmp_path / "run"
    assert main(["train", "num_steps=1", *SMALL, "--run", str(folder)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"accuracy, greedy +\d+\.\d% +\d+\.\d% +[+-]\d+\.\d", out)
    assert "pass@2" in out
    assert str(folder) in out
    assert f"treepo eval --model {folder / 'checkpoints' / 'step_1'}" in out


def test_resumed_run_with_more_steps_goes_on_from_its_last_checkpoint(capsys, tmp_path):
    folder = tmp_path / "run"
    assert main(["train", "num_steps=1", *SMALL, f"output_dir={folder}"]) == 0
    evaluation_file = folder / "eval" / "after.json"
    first = evaluation_file.stat().st_mtime_ns
    assert main(["train", "--resume", str(folder), "num_steps=2"]) == 0
    assert evaluation_file.stat().st_mtime_ns > first
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert "2 steps" in capsys.readouterr().out


def test_train_on_own_model_data_and_held_out_file(tiny_model_dir, write_rows, tmp_path, capsys):
    rows = [{"prompt": f"{n}*2=", "answer": str(2 * n)} for n in range(10, 14)]
    data, held_out = write_rows(rows), write_rows(rows[:2], "held_out.jsonl")
    words = ["--model", tiny_model_dir, "--data", data, f"data.eval={held_out}"]
    more = [*SMALL, "num_steps=1", "search.segment_len=4", f"output_dir={tmp_path / 'run'}"]
    assert main(["train", *map(str, words), *more]) == 0
    result = json.loads((tmp_path / "run" / "eval" / "after.json").read_text())
    assert result["num_prompts"] == 2
    following = capsys.readouterr().out.partition("next:  treepo ")[2].split()
    assert main([*following, "eval.num_prompts=1"]) == 0
    assert "1 prompt," in capsys.readouterr().out


def test_rollout_draws_a_tree_and_saves_a_forest_that_loads(capsys, tmp_path, write_rows):
    out = tmp_path / "forest.safetensors"
    prompts = write_rows([{"prompt": "37539*9="}, {"prompt": "00420*7="}])
    assert main(["rollout", "--prompts", str(prompts), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    forest = Forest.load(out)
    assert forest.num_trees == 2
    assert text.startswith("37539*9=  [8 tokens]\n  +- ")
    assert f"\n2 trees, {forest.num_paths} trajectories, " in text
    assert f"share ratio {forest.share_ratio:.2f}" in text
    drawn = [int(count) for count in re.findall(r"\[(\d+) tokens", text)]
    first_tree = forest.select([0])
    assert sum(drawn) == first_tree.num_tokens


def test_rollout_is_the_same_for_the_same_seed(tmp_path, write_rows):
    prompts = write_rows([{"prompt": "37539*9="}])
    files = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        words = ["--prompts", str(prompts), "--out", str(file), f"seed={seed}"]
        assert main(["rollout", *words]) == 0
    ids = [Forest.load(file).tokens.id.tolist() for file in files]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_eval_prints_accuracy_and_writes_json(capsys, tmp_path):
    out = tmp_path / "eval.json"
    words = ["eval.num_prompts=3", "eval.num_samples=2", "--out", str(out)]
    assert main(["eval", *words]) == 0
    assert "pass@2" in capsys.readouterr().out
    assert Evaluation.from_dict(json.loads(out.read_text())).num_prompts == 3


def test_help_of_a_command_lists_every_config_key_and_loads_no_torch():
    code = (
        "import sys\nfrom treepo.cli.main import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert re.search(r"optimizer.learning_rate=2.7e-05 +Peak learning rate", done.stdout)


def test_help_names_choices_and_the_defaults_that_differ_with_a_model():
    text = describe(TrainConfig(), TrainConfig.for_model("PATH"))
    assert re.search(r"search.fallback.from=answered .*; one of nothing, answered, all", text)
    assert re.search(r"search.segment_len=9 .*; with --model: 64", text)
    assert re.search(r"optimizer.betas=0.9,0.95 ", text)
    assert not re.search(r"search.width=.*with --model", text)


@pytest.mark.parametrize("reward", [["--reward", "last_number"], ["reward.name=last_number"]])
def test_rollout_with_a_reward_shows_and_saves_it(capsys, tmp_path, write_rows, reward):
    out = tmp_path / "forest.safetensors"
    prompts = write_rows([{"prompt": "37539*9=", "answer": "337851"}])
    words = ["--prompts", prompts, "--out", out, *reward]
    assert main(["rollout", *map(str, words)]) == 0
    assert re.search(r"tokens, stop, reward [01][,\]]", capsys.readouterr().out)
    assert np.isfinite(Forest.load(out).paths.reward).all()


def test_rollout_of_a_model_takes_the_prompts_of_the_training_data(
    tiny_model_dir, tmp_path, write_rows
):
    out = tmp_path / "forest.safetensors"
    rows = write_rows([{"prompt": "12*3="}, {"prompt": "4="}])
    words = ["--model", tiny_model_dir, f"data.train={rows}", "--out", out]
    assert main(["rollout", *map(str, words), "search.segment_len=4"]) == 0
    assert Forest.load(out).trees.prompt_len.tolist() == [5, 2]


def test_rollout_reads_prompts_from_standard_input(tmp_path):
    words = ["rollout", "--prompts", "-", "--out", str(tmp_path / "forest.safetensors")]
    done = subprocess.run(
        [sys.executable, "-m", "treepo", *words],
        input='{"prompt": "37539*9="}\n',
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("37539*9=  [8 tokens]"), done.stderr


def test_ctrl_c_leaves_a_run_that_resume_finishes(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["num_steps=500", *SMALL, "eval.num_prompts=0", f"output_dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "treepo.cli.main", "train", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = folder / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"treepo train --resume {folder}" in err
    assert "Traceback" not in err
    done = len(metrics.read_text().splitlines())
    assert main(["train", "--resume", str(folder), f"num_steps={done + 1}"]) == 0
    assert f"{done + 1} steps" in capsys.readouterr().out


def test_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(tmp_path):
    words = ["num_steps=4", *SMALL, "eval.num_prompts=0", "save_every=1", "num_threads=1"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "treepo.cli.main", "train", *words, "--run", str(killed)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for _ in range(600):
        if any((killed / "checkpoints").glob("step_*")) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert main(["train", "--resume", str(killed)]) == 0
    assert main(["train", *words, "--run", str(whole)]) == 0
    for name in (
        "model.safetensors",
        "training/optimizer.safetensors",
        "training/rollout_state.json",
    ):
        files = [run / "checkpoints" / "step_4" / name for run in (killed, whole)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_first_signal_says_that_the_run_stops_and_how_to_stop_at_once(capfd):
    with Interruption() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
    assert "stopping with a checkpoint; once more stops at once" in capfd.readouterr().err


def test_reader_that_leaves_early_gets_no_traceback():
    done = subprocess.run(
        f"'{sys.executable}' -m treepo train --help | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_step_without_any_reward_is_said_once(capsys):
    metrics = {"reward": float("nan"), "accuracy": float("nan")}
    metrics |= {"perf/tok_per_s": 1.0, "tree/share_ratio": 1.0}
    with Progress(2, first_step=0) as progress:
        progress.show(1, metrics)
        progress.show(2, metrics)
    assert capsys.readouterr().err.count("no completion got a reward") == 1


def test_counts_are_grammatical():
    assert counted(1, "tree") == "1 tree"
    assert counted(4, "trajectory", "trajectories") == "4 trajectories"


def test_fall_of_pass_at_k_is_said():
    after = evaluation(accuracy=0.5, pass_at={1: 0.5, 2: 0.625})
    assert "pass@2 fell from 75.0% to 62.5%" in before_after(evaluation(), after)
    assert "fell" not in before_after(evaluation(), evaluation())


def test_completions_without_a_reward_are_said():
    text = before_after(evaluation(num_unscored=1), evaluation(num_unscored=3))
    assert "before: 1 completion got no reward" in text
    assert "after: 3 completions got no reward" in text


def test_evaluations_of_another_kind_are_compared_in_what_both_have():
    before = evaluation(pass_at={1: 0.25, 2: 0.75})
    pass_at = {1: 0.5, 2: 0.625, 4: 0.875}
    after = evaluation(num_samples=4, temperature=0.5, pass_at=pass_at, greedy_accuracy=0.75)
    lines = before_after(before, after).splitlines()
    rows = [re.split("  +", line) for line in lines if "%" in line and "fell" not in line]
    assert rows == [
        ["accuracy, greedy", "50.0%", "75.0%", "+25.0"],
        ["pass@2", "75.0%", "62.5%", "-12.5"],
    ]
    assert "evaluated differently: num_samples was 2, is 4" in lines
    assert "evaluated differently: temperature was 1.0, is 0.5" in lines
    assert not any("num_prompts" in line for line in lines)


def test_evaluation_survives_json():
    again = Evaluation.from_dict(json.loads(json.dumps(evaluation().to_dict())))
    assert again == evaluation()


@pytest.mark.parametrize(("n", "k"), [(4, 1), (4, 2), (5, 3), (4, 4)])
def test_pass_at_k_equals_counting_all_subsets(n, k):
    from itertools import combinations

    for correct in range(n + 1):
        hits = [any(i < correct for i in subset) for subset in combinations(range(n), k)]
        assert pass_at_k([correct], n, k) == pytest.approx(np.mean(hits))


def test_pass_at_more_than_was_sampled_is_refused():
    with pytest.raises(InvalidInputError, match=r"k must be in 1\.\.4, got 5"):
        pass_at_k([1], 4, 5)


class Codepoints:
    """Decodes token ids as code points."""

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("char", ["x", "\u65e5"])
def test_picture_fits_the_terminal_in_any_script(columns, char):
    grown = core.Forest()
    tree = grown.add_tree(0, np.array([ord("?")], dtype=np.uint32))
    ids = np.full(300, ord(char), dtype=np.uint32)
    zeros = np.zeros(300, dtype=np.float32)
    grown.append(tree, 0, ids, zeros, zeros)
    grown.finish(tree, 0, 1)
    line = picture(Forest(grown), 0, Codepoints(), columns=columns).split("\n")[1]
    cells = sum(2 if x == "\u65e5" else 1 for x in line)
    assert columns - 2 <= cells <= columns
    assert " ... " in line


def test_picture_escapes_line_ends_and_leaves_quotes_and_backslashes():
    grown = core.Forest()
    prompt = np.array([ord(x) for x in 'it\'s "\\boxed"\n\t'], dtype=np.uint32)
    grown.add_tree(0, prompt)
    text = picture(Forest(grown), 0, Codepoints(), columns=80)
    assert text.startswith(r"""it's "\boxed"\n\t  [""")


def test_picture_shows_the_weights_of_an_unbalanced_tree():
    search = core.Search(core.SearchConfig(width=3, segment_len=1, max_depth=2))
    search.add_tree(0, np.array([65], dtype=np.uint32))
    zeros = np.zeros(1, dtype=np.float32)
    while not search.is_done():
        for tree, path, _ in search.segments().tolist():
            search.complete_segment(tree, path, np.array([66], dtype=np.uint32), zeros, zeros)
    lines = picture(Forest(search.forest()), 0, Codepoints(), columns=80).split("\n")
    weights = sorted(re.findall(r"length, weight (.*)\]", "\n".join(lines)))
    assert weights == ["0.75", "0.75", "1.5"]


def test_picture_shows_every_token_once_and_how_leaves_ended(tiny_model_dir):
    from transformers import AutoTokenizer

    grown = core.Forest()
    tree = grown.add_tree(0, np.array([1, 2], dtype=np.uint32))

    def append(path, ids):
        zeros = np.zeros(len(ids), dtype=np.float32)
        grown.append(tree, path, np.array(ids, dtype=np.uint32), zeros, zeros)
        grown.mark(tree, path)

    append(0, [3, 4])
    other = grown.fork(tree, 0, 4)
    append(0, [5])
    append(0, [6, 17])
    append(other, [7])
    grown.finish(tree, 0, 1)
    grown.finish(tree, other, 2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    lines = picture(Forest(grown), 0, tokenizer, columns=80).split("\n")
    assert lines[0] == "12  [2 tokens]"
    assert lines[1] == "  +- 34  [2 tokens]"
    assert lines[2].startswith("    +- 56")
    assert lines[2].endswith("[3 tokens, stop]")
    assert lines[3] == "    +- 7  [1 token, length]"


def test_eval_says_which_prompts_it_takes_their_mean_reward_and_what_was_cut_off(
    capsys, write_rows
):
    data = write_rows([{"prompt": f"{n}*2=", "answer": "x"} for n in range(10, 14)])
    words = ["eval.num_prompts=2", "eval.num_samples=2", "reward.num_workers=0"]
    limits = ["search.segment_len=1", "search.max_depth=1"]
    assert main(["eval", "--data", str(data), *words, *limits]) == 0
    out = capsys.readouterr().out
    assert "the first 2 of 4 prompts (eval.num_prompts)\n" in out
    assert re.search(r"^mean reward +0$", out, re.MULTILINE)
    assert "100.0% of the sampled completions did not end by themselves" in out
    assert main(["eval", "--data", str(data), *words, *limits, "eval.num_prompts=4"]) == 0
    assert "the first" not in capsys.readouterr().out


def test_mean_reward_is_compared_where_it_is_not_the_accuracy():
    graded = evaluation(mean_reward=0.5)
    text = before_after(evaluation(), graded)
    assert re.search(r"^mean reward +0\.25 +0\.5 +\+0\.25$", text, re.MULTILINE)
    assert "mean reward" not in before_after(evaluation(), evaluation())


def test_rollout_by_a_file_with_a_reward_takes_prompts_without_answers(
    capsys, tmp_path, write_rows
):
    file, out = tmp_path / "run.yaml", tmp_path / "forest.safetensors"
    file.write_text("reward: {name: last_number}\n")
    prompts = write_rows([{"prompt": "37539*9="}])
    words = ["--config", file, "--prompts", prompts, "--out", out]
    assert main(["rollout", *map(str, words)]) == 0
    shown = capsys.readouterr()
    assert re.search("^trees are not scored: .*'answer'", shown.err, re.MULTILINE)
    assert ", reward" not in shown.out
    assert np.isnan(Forest.load(out).paths.reward).all()
