"""Learning curves of the embedded default: `treepo train` as a user runs it, with its controls.

Each run is a fresh process. `default` trains; `zero_lr` has learning rate 0; `shuffled` permutes
the rewards over the batch. The result holds wall clock from the start of the process to its end,
evaluations included, and held-out accuracy before and after.

    python benches/learning.py                     # 3 seeds of everything
    python benches/learning.py --seeds 0 --kinds default
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import environment

KINDS = {
    "default": [],
    "zero_lr": ["optimizer.learning_rate=0"],
    "shuffled": ["reward.shuffle=true"],
}
BARS = {"accuracy": 0.30, "greedy_accuracy": 0.15, "control": 0.03, "seconds": 300.0}


def main() -> None:
    options = parse()
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        for kind in options.kinds:
            runs.append(train(kind, seed, options))
            show(runs[-1])
            file = environment.write(
                options.name, {"options": vars(options), "bars": BARS, "runs": runs}
            )
    print(file)


def train(kind: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run in its own process; returns what its folder says."""
    folder = Path(tempfile.mkdtemp(prefix=f"treepo_{kind}_{seed}_")) / "run"
    words = [*KINDS[kind], f"seed={seed}", f"output_dir={folder}", *options.overrides]
    load = os.getloadavg()
    variables = {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(options.threads),
    }
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "treepo.cli.main", "train", *words], check=True, env=variables
    )
    seconds = time.perf_counter() - began
    evaluations = {
        name: json.loads((folder / "eval" / f"{name}.json").read_text())
        for name in ("before", "after")
    }
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [
        {key: step[key] for key in ("step", "accuracy", "num_tokens", "step_time", "entropy")}
        for step in steps
    ]
    shutil.rmtree(folder.parent)
    return {
        "kind": kind,
        "seed": seed,
        "overrides": [*KINDS[kind], *options.overrides],
        "load_average_at_start": load,
        "seconds": seconds,
        **evaluations,
        "curve": curve,
    }


def show(run: dict[str, Any]) -> None:
    """Print a run against the bars."""
    before, after = run["before"], run["after"]
    print(f"{run['kind']} seed {run['seed']}: {run['seconds']:.0f} s", end="")
    for name in ("accuracy", "greedy_accuracy"):
        first, last = 100 * before[name], 100 * after[name]
        print(f"; {name} {first:.1f} -> {last:.1f} ({last - first:+.1f})", end="")
    for k, value in before["pass_at"].items():
        print(f"; pass@{k} {100 * value:.1f} -> {100 * after['pass_at'][k]:.1f}", end="")
    print(flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="learning", help="name of the result file")
    parser.add_argument("overrides", nargs="*", help="config keys, e.g. num_steps=20")
    return parser.parse_args()


if __name__ == "__main__":
    main()
