"""Tables and plots of what `learning_sweep.py` has measured so far.

Means over seeds with 95 % intervals (Student's t), at equal sampled tokens and against seconds;
differences are between runs of the same seed. Needs matplotlib.

    python benches/learning_report.py            # prints tables, writes docs/learning/*.png
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import environment
from learning_sweep import FOLDER, SWEEPS

F64 = npt.NDArray[np.float64]
Runs = Mapping[int, Mapping[str, Any]]
PLOTS = environment.REPO / "docs/learning"
GRID = np.linspace(0, 200_000, 26)
BASE = "grpo_flat"
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}


def main() -> None:
    arms = load()
    PLOTS.mkdir(parents=True, exist_ok=True)
    for name, (members, _) in SWEEPS.items():
        own = {arm: arms[arm] for arm in [*extra(name), *members] if arm in arms}
        if own:
            print(f"\n{name}\n{table(own, arms)}")
            draw(name, own)


def extra(sweep: str) -> list[str]:
    """Arms of another sweep that belong beside this one."""
    return {"presets": [], "variants": ["treepo"], "shapes": ["treepo"]}.get(
        sweep, ["treepo", "grpo_flat"]
    )


def load() -> dict[str, dict[int, dict[str, Any]]]:
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for file in sorted(FOLDER.glob("*.json")):
        run = json.loads(file.read_text())
        arms.setdefault(run["arm"], {})[run["seed"]] = run
    return arms


def table(own: Mapping[str, Runs], arms: Mapping[str, Runs]) -> str:
    lines = [
        "| arm | seeds | accuracy | greedy | mean over the run | difference to flat GRPO | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, runs in own.items():
        last = [run["curve"][-1] for run in runs.values()]
        cells = [
            f"`{arm}`",
            str(len(runs)),
            interval([100 * x["accuracy"] for x in last]),
            interval([100 * x["greedy_accuracy"] for x in last]),
            interval([100 * float(at_tokens(run).mean()) for run in runs.values()]),
            difference(runs, arms.get(BASE, {})) if arm != BASE else "",
            f"{np.mean([x['step'] for x in last]):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(runs: Runs, base: Runs) -> str:
    """Final accuracy minus the base's of the same seed."""
    seeds = sorted(set(runs) & set(base))
    pairs = [(runs[seed]["curve"][-1], base[seed]["curve"][-1]) for seed in seeds]
    return interval([100 * (mine["accuracy"] - theirs["accuracy"]) for mine, theirs in pairs], "+")


def interval(values: Sequence[float], sign: str = "") -> str:
    """Mean and half-width over seeds."""
    if not values:
        return ""
    mean = float(np.mean(values))
    text = f"{mean:{sign}.1f}"
    return text if len(values) < 2 else f"{text} +- {half_width(np.array(values)):.1f}"


def half_width(values: F64) -> float:
    count = len(values)
    return float(T95.get(count - 1, 1.96) * values.std(ddof=1) / math.sqrt(count))


def at_tokens(run: Mapping[str, Any], key: str = "accuracy") -> F64:
    """Accuracy on a common grid of sampled tokens, interpolated between evaluations."""
    points = run["curve"]
    return np.interp(GRID, [p["tokens"] for p in points], [p[key] for p in points])


def at_seconds(run: Mapping[str, Any], grid: F64) -> F64:
    points = run["curve"]
    return np.interp(grid, [p["seconds"] for p in points], [p["accuracy"] for p in points])


def draw(name: str, own: Mapping[str, Runs]) -> None:
    """Accuracy against tokens and against seconds, bands of the 95 % interval."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_tokens, by_seconds = figure.subplots(1, 2, sharey=True)
    ends = [run["curve"][-1]["seconds"] for runs in own.values() for run in runs.values()]
    seconds = np.linspace(0, float(np.median(ends)), 26)
    for arm, runs in own.items():
        curves = np.stack([at_tokens(run) for run in runs.values()])
        timed = np.stack([at_seconds(run, seconds) for run in runs.values()])
        for axes, grid, values in ((by_tokens, GRID, curves), (by_seconds, seconds, timed)):
            (line,) = axes.plot(grid, values.mean(0), label=arm)
            if len(values) > 1:
                spread = np.array([half_width(column) for column in values.T])
                axes.fill_between(
                    grid,
                    values.mean(0) - spread,
                    values.mean(0) + spread,
                    color=line.get_color(),
                    alpha=0.1,
                )
    by_tokens.set_xlabel("sampled tokens")
    by_seconds.set_xlabel("seconds of training, one thread")
    by_tokens.set_ylabel("held-out accuracy, temperature 1")
    for axes in (by_tokens, by_seconds):
        axes.grid(visible=True, alpha=0.3)
    by_tokens.legend(fontsize=8)
    file = PLOTS / f"{name}.png"
    figure.savefig(file, dpi=90)
    print(file)


if __name__ == "__main__":
    main()
