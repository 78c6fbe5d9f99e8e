"""The examples run, those that need no torch without it, and what they print holds together."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
BLOCKED = ("torch", "transformers", "tokenizers", "safetensors")


def run(name):
    """What the example prints, with imports of torch and its like blocked."""
    code = (
        f"import runpy, sys\nsys.modules.update(dict.fromkeys({BLOCKED}))\n"
        f"runpy.run_path({str(EXAMPLES / name)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_the_segments_example_grows_a_tree_of_its_width():
    *tree, summary = run("segments.py")
    num_leaves, num_sampled, share = re.fullmatch(
        r"(\d+) leaves, (\d+) tokens sampled, share ([\d.]+)", summary
    ).groups()
    ends = [re.search(r"\[path (\d+): (stop|length|depth)\]$", line) for line in tree]
    assert sorted(int(end[1]) for end in ends if end) == list(range(8))
    assert int(num_leaves) == 8
    assert float(share) > 1
    texts = [re.search(r"['\"](.*?)['\"]", line)[1] for line in tree]
    assert texts[0] == "the "
    assert sum(map(len, texts[1:])) == int(num_sampled)
    for text, end in zip(texts, ends, strict=True):
        assert text.endswith(".") == (end is not None and end[2] == "stop")


def test_the_scheduler_example_agrees_with_its_recomputation():
    *tree, stats, verdict = run("scheduler.py")
    num_paths, error = re.fullmatch(
        r"(\d+) paths agree with their recomputation to (\S+)", verdict
    ).groups()
    assert int(num_paths) == len(tree) == 18
    assert float(error) < 1e-5
    counts = {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", stats)}
    num_tokens = sum(len(line.split()[2:]) for line in tree)
    assert counts["decoded_tokens"] == num_tokens - 3 * 8
    for name in ("block_copies", "shared_samples", "evictions", "recomputed_tokens"):
        assert counts[name] > 0, name


def test_the_loop_example_trains():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "loop.py"], check=True, capture_output=True, text=True
    )
    steps = re.findall(r"step (\d): reward (0\.\d+), loss ([+-]\d+\.\d+), 64 answers", done.stdout)
    assert [int(number) for number, _, _ in steps] == [1, 2, 3]
    assert all(0 < float(reward) < 1 for _, reward, _ in steps)


def test_the_examples_are_short():
    for example in EXAMPLES.glob("*.py"):
        assert len(example.read_text().splitlines()) < 90, example.name
