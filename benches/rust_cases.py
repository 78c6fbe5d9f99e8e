"""The cases of the Rust benches (`rust/treepo/benches`), run from Python."""

import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

from environment import REPO


def build() -> Path:
    """Compiles the cases with optimisation and returns the program."""
    command = ["cargo", "bench", "-q", "--package", "treepo", "--bench", "cases", "--no-run"]
    command += ["--message-format", "json"]
    output = subprocess.run(command, cwd=REPO, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in output.stdout.splitlines()]
    programs = [message["executable"] for message in messages if message.get("executable")]
    return Path(programs[-1])


def run(program: Path, mode: str | int, names: Sequence[str]) -> str:
    """Runs cases in a mode of the program and returns what it prints.

    Raises:
        SystemExit: with the program's message, e.g. for an unknown case.
    """
    command = [str(program), str(mode), *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout.strip() or f"{command} ended with {done.returncode}")
    return done.stdout


def median_times(program: Path, names: Sequence[str], num_runs: int) -> dict[str, float]:
    """Nanoseconds of one operation of each case, median of some runs in one process."""
    times: dict[str, list[float]] = json.loads(run(program, num_runs, names))
    return {name: statistics.median(runs) for name, runs in times.items()}
