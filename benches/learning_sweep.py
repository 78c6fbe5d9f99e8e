"""Presets and searches at equal cost: held-out accuracy against sampled tokens and seconds.

Each run is a fresh process that trains the embedded task until it has sampled a number of tokens,
evaluating on the way. A run's result is one file; a sweep that is interrupted goes on where it
stopped. `learning_report.py` draws what is there.

    python benches/learning_sweep.py presets              # 7 arms, 8 seeds
    python benches/learning_sweep.py variants shapes rates # ablations, 4 seeds
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import environment

FOLDER = environment.RESULTS / "learning"
TREE = ["search.width=8", "search.segment_len=9", "search.max_depth=7"]
FLAT = ["search.preset=flat", "search.width=8", "search.segment_len=63", "search.max_depth=1"]
MAX_SAMPLED_TOKENS = 200_000
COMMON = [
    f"max_sampled_tokens={MAX_SAMPLED_TOKENS}",
    "num_steps=1000",
    "optimizer.learning_rate=4e-4",
    "eval.num_prompts=200",
    "eval.num_samples=4",
    "eval.every=6",
    "save_every=0",
]


def preset(name: str, search: list[str]) -> list[str]:
    return [f"advantage.preset={name}", *search]


def shape(segment_len: int, max_depth: int) -> list[str]:
    return [f"search.segment_len={segment_len}", f"search.max_depth={max_depth}"]


PRESETS = {
    "treepo": preset("treepo", TREE),
    "grpo": preset("grpo", TREE),
    "rloo": preset("rloo", TREE),
    "spo_tree": preset("spo_tree", TREE),
    "treerl": preset("treerl", TREE),
    "tree_rloo": preset("tree_rloo", TREE),
    "grpo_flat": preset("grpo", FLAT),
}
VARIANTS = {
    name: preset(name, TREE)
    for name in ("treepo_size_weighted", "treepo_with_rejection", "treepo_without_root")
}
SHAPES = {
    f"treepo_{length}x{depth}": [*preset("treepo", TREE), *shape(length, depth)]
    for length, depth in ((5, 13), (18, 4), (32, 2))
}
RATES = {
    f"{arm}_{rate}": [*PRESETS[arm], f"optimizer.learning_rate={rate}"]
    for rate in ("2e-4", "8e-4")
    for arm in ("treepo", "grpo_flat")
}
SWEEPS = {
    "presets": (PRESETS, 8),
    "variants": (VARIANTS, 4),
    "shapes": (SHAPES, 4),
    "rates": (RATES, 4),
}


def main() -> None:
    options = parse()
    for name in options.sweeps:
        arms, num_seeds = SWEEPS[name]
        for seed in range(options.seeds or num_seeds):
            for arm, words in arms.items():
                run_once(arm, words, seed, options)


def run_once(arm: str, words: list[str], seed: int, options: argparse.Namespace) -> None:
    """Make one run, unless its file is there."""
    file = FOLDER / f"{arm}_{seed}.json"
    if file.exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    result = train([*COMMON, *words, *options.overrides], seed, options.threads)
    result = {"environment": environment.describe(), "arm": arm, "seed": seed, **result}
    writing = file.with_suffix(".writing")
    writing.write_text(json.dumps(result, indent=1) + "\n")
    writing.replace(file)
    last = result["curve"][-1]
    print(
        f"{arm} seed {seed}: accuracy {last['accuracy']:.3f}, greedy {last['greedy_accuracy']:.3f} "
        f"after {last['tokens']} tokens, {last['seconds']:.0f} s; {result['seconds']:.0f} s in all",
        flush=True,
    )


def train(words: list[str], seed: int, threads: int) -> dict[str, Any]:
    """Train in a process of its own; returns the curve that its folder holds."""
    with tempfile.TemporaryDirectory(prefix="treepo_learning_") as parent:
        folder = Path(parent) / "run"
        words = [*words, f"seed={seed}", f"output_dir={folder}", f"num_threads={threads}"]
        variables = {
            **os.environ,
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": str(threads),
        }
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "treepo.cli.main", "train", *words], check=True, env=variables
        )
        seconds = time.perf_counter() - began
        return {"overrides": words, "seconds": seconds, **curve(folder)}


def curve(folder: Path) -> dict[str, Any]:
    """Held-out accuracy at each evaluation, and what had been spent on training by then."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    spent = {0: (0, 0.0)}
    for row in steps:
        spent[row["step"]] = (int(row["num_tokens"]), spent[row["step"] - 1][1] + row["step_time"])
    points = []
    for file in (folder / "eval").glob("*.json"):
        values = json.loads(file.read_text())
        step = step_of(file.stem, len(steps))
        points.append(
            {
                "step": step,
                "tokens": spent[step][0],
                "seconds": spent[step][1],
                "accuracy": values["accuracy"],
                "greedy_accuracy": values["greedy_accuracy"],
            }
        )
    kept = [row["tree/kept"] for row in steps]
    return {
        "curve": sorted(points, key=lambda point: point["step"]),
        "kept_trees": sum(kept),
        "share_ratio": sum(row["tree/share_ratio"] for row in steps) / len(steps),
        "train_seconds": sum(row["perf/train_s"] for row in steps),
        "sample_seconds": sum(row["perf/sample_s"] for row in steps),
    }


def step_of(evaluation: str, last: int) -> int:
    """The step after which an evaluation was made."""
    ends = {"before": 0, "after": last}
    return ends[evaluation] if evaluation in ends else int(evaluation.removeprefix("step_"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", nargs="+", choices=SWEEPS)
    parser.add_argument("--seeds", type=int, help="seeds from 0 on; those of the sweep if absent")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--overrides", nargs="*", default=[], help="config keys, e.g. num_steps=20")
    return parser.parse_args()


if __name__ == "__main__":
    main()
