"""`treepo lab`: bias and cost of every advantage preset, where the exact gradient is known."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from treepo.advantages import PRESETS, find_preset
from treepo.cli import EXIT_OK
from treepo.errors import InvalidConfigError
from treepo.lab import SEARCHES, Row, TrapResult, compare, spring
from treepo.lab.experiment import BATCH_SIZE
from treepo.lab.trap import TRUE_VALUE

_BATCHES = 500
_MIN_BATCHES = 40
_TRAP_TREES = 10_000
_SIBLINGS = (1, 2, 4)
_HEAD = f"{'preset':24}{'leaves':>10}{'bias':>8}{'95 %':>18}{'length':>9}{'cost':>9}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    parser.epilog = (
        "bias: the part of the mean gradient that points elsewhere, over the part along the exact\n"
        "one. length: that part over the exact gradient. cost: sampled tokens for a signal as\n"
        "strong as its noise. leaves: alike, or by their inclusion weights."
    )
    parser.add_argument(
        "--batches",
        type=int,
        default=_BATCHES,
        metavar="N",
        help=f"batches of {BATCH_SIZE} trees a search ({_BATCHES}); intervals shrink with the root",
    )
    parser.add_argument("--searches", metavar="A,B,..", help=f"of {', '.join(SEARCHES)}")
    parser.add_argument("--presets", metavar="A,B,..", help="advantage presets (all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of search and tokens (0)")
    parser.add_argument(
        "--output-dir", metavar="DIR", help="folder for lab.json and plots (needs matplotlib)"
    )


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Measure and print; returns the exit code."""
    if overrides:
        raise InvalidConfigError(f"unknown option {overrides[0]!r}; see treepo lab --help")
    if arguments.batches < _MIN_BATCHES:
        raise InvalidConfigError(
            f"--batches must be at least {_MIN_BATCHES}, got {arguments.batches}"
        )
    if arguments.seed < 0:
        raise InvalidConfigError(f"--seed must be at least 0, got {arguments.seed}")
    folder = None if arguments.output_dir is None else _folder(arguments.output_dir)
    searches = _searches(arguments.searches)
    presets = _presets(arguments.presets)
    traps = [
        spring(rule, siblings, _TRAP_TREES, arguments.seed)
        for rule in ("token_surprisal", "token_entropy")
        for siblings in _SIBLINGS
    ]
    _print_traps(traps)
    rows = []
    for search in searches:
        print(f"\n{search}\n{_HEAD}")
        for row in compare(
            arguments.batches, searches=[search], presets=presets, seed=arguments.seed
        ):
            rows.append(row)
            print(_line(row), flush=True)
    if folder is not None:
        _save(folder, arguments, traps, rows)
    return EXIT_OK


def _folder(name: str) -> Path:
    """Make the folder for results before anything is measured, and say if plots will be missing.

    Raises:
        InvalidConfigError: It cannot be made.
    """
    path = Path(name)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfigError(
            f"cannot write {path}: {error.strerror}; name another folder with --output-dir"
        ) from None
    if importlib.util.find_spec("matplotlib") is None:
        print("there will be no plots: pip install matplotlib", file=sys.stderr)
    return path


def _searches(text: str | None) -> list[str]:
    names = list(SEARCHES) if text is None else text.split(",")
    for name in names:
        if name not in SEARCHES:
            raise InvalidConfigError(f"unknown search {name!r}, known: {', '.join(SEARCHES)}")
    return names


def _presets(text: str | None) -> list[str]:
    names = list(PRESETS) if text is None else text.split(",")
    for name in names:
        find_preset(name)
    return names


def _print_traps(traps: Sequence[TrapResult]) -> None:
    print(f"value of the states that a rule forks at; it is {TRUE_VALUE}")
    for trap in traps:
        siblings = f"{trap.siblings} fresh sibling{'s' if trap.siblings > 1 else ''}"
        print(f"  {trap.rule:18}{siblings:18}{trap.estimate:.3f} +- {trap.half_width:.3f}")


def _line(row: Row) -> str:
    found = row.quality
    counted = "weighted" if row.is_weighted else "alike"
    if found.scale == 0:
        return f"{row.preset:24}{counted:>10}   no gradient"
    interval = f"{found.bias_low:.3f} .. {found.bias_high:.3f}"
    return (
        f"{row.preset:24}{counted:>10}{found.bias:8.3f}{interval:>18}{found.scale:9.3f}"
        f"{found.cost:9.0f}"
    )


def _save(
    folder: Path,
    arguments: argparse.Namespace,
    traps: Sequence[TrapResult],
    rows: Sequence[Row],
) -> None:
    result = {
        "batches": arguments.batches,
        "trees_per_batch": BATCH_SIZE,
        "seed": arguments.seed,
        "true_value": TRUE_VALUE,
        "traps": [asdict(trap) for trap in traps],
        "rows": [asdict(row) for row in rows],
    }
    file = folder / "lab.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{file}")
    if importlib.util.find_spec("matplotlib") is None:
        return
    from treepo.lab.plots import draw

    for plot in draw(folder, traps, rows):
        print(plot)
