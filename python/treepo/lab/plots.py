"""Plots of what the lab finds. Needs matplotlib (the extra `lab`)."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from treepo.lab.experiment import Row
from treepo.lab.trap import TRUE_VALUE, TrapResult

_COLORS = {False: "tab:red", True: "tab:blue"}
_LABELS = {False: "all leaves alike", True: "by inclusion weights"}


def draw(folder: Path, traps: Sequence[TrapResult], rows: Sequence[Row]) -> list[Path]:
    """Draw all plots as PNG files.

    Args:
        folder: An existing folder.
        traps: Values at forks.
        rows: Presets under searches.

    Returns:
        The files.
    """
    searches = list(dict.fromkeys(row.search for row in rows))
    files = [_draw_traps(folder / "trap.png", traps)]
    of_searches = ((name, [row for row in rows if row.search == name]) for name in searches)
    files += [_draw_search(folder / f"{name}.png", name, own) for name, own in of_searches]
    return files


def _draw_search(file: Path, name: str, rows: Sequence[Row]) -> Path:
    """Bias with its interval, and cost, of every preset under one search."""
    rows = [row for row in rows if row.quality.scale != 0]
    presets = list(dict.fromkeys(row.preset for row in rows))
    figure = Figure(figsize=(10, 0.32 * len(presets) + 1.4), layout="constrained")
    bias, cost = figure.subplots(1, 2, sharey=True)
    for is_weighted in (False, True):
        chosen = [row for row in rows if row.is_weighted == is_weighted]
        place = [presets.index(row.preset) + (0.15 if is_weighted else -0.15) for row in chosen]
        style = {"color": _COLORS[is_weighted], "fmt": "o", "markersize": 4}
        found = [row.quality for row in chosen]
        low = [max(q.bias - q.bias_low, 0.0) for q in found]
        high = [max(q.bias_high - q.bias, 0.0) for q in found]
        bias.errorbar([q.bias for q in found], place, xerr=[low, high], **style)
        cost.errorbar([q.cost for q in found], place, label=_LABELS[is_weighted], **style)
    bias.set_yticks(range(len(presets)), presets)
    bias.invert_yaxis()
    _label(bias, "bias: off the exact direction / along it")
    _label(cost, "cost: tokens for a signal as strong as its noise")
    cost.set_xscale("log")
    cost.legend()
    figure.suptitle(f"search: {name}")
    return _save(figure, file)


def _draw_traps(file: Path, traps: Sequence[TrapResult]) -> Path:
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for rule in dict.fromkeys(trap.rule for trap in traps):
        chosen = [trap for trap in traps if trap.rule == rule]
        axes.errorbar(
            [trap.siblings for trap in chosen],
            [trap.estimate for trap in chosen],
            yerr=[trap.half_width for trap in chosen],
            marker="o",
            label=rule,
        )
    axes.axhline(TRUE_VALUE, color="gray", linestyle="--", label="true value")
    axes.set_ylim(0, 1)
    axes.set_ylabel("estimated value")
    _label(axes, "fresh siblings of a fork")
    axes.legend()
    return _save(figure, file)


def _label(axes: Axes, text: str) -> None:
    axes.set_xlabel(text)
    axes.grid(visible=True, alpha=0.3)


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, dpi=90)
    return file
