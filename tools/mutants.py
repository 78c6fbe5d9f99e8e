"""Applies named faults to a copy of the core crate; its tests have to notice each.

    python tools/mutants.py [--all | NAME ...]

The faults are in `mutants.toml`. Without arguments the core ones are applied, one after the other.
A mutant is killed when it compiles and one of the test targets that it names fails or does not
end. Exit code 0 if all are killed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FAULTS = Path(__file__).with_suffix(".toml")
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
# The fewest with which every event of the simulator's report happens.
NUM_SEEDS = 1000
# A test that takes this much longer than without a fault does not end.
PATIENCE = 8.0
LEAST_TIMEOUT_S = 20.0
BUILD_TIMEOUT_S = 900.0


class Outcome(StrEnum):
    """What the tests said."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    NOT_BUILT = "NOT BUILT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """`find` occurs exactly once in `file`, a path below `src`, and becomes `replace`."""

    file: str
    find: str
    replace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One fault.

    Attributes:
        name: What the fault is.
        edits: How it comes into the crate.
        tests: Test targets that must notice it, tried in this order; one of them is enough. `lib`
            stands for the unit tests.
        is_core: Whether it is applied unless all are asked for.
    """

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...] = ("sim",)
    is_core: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a mutant, and which test target killed it."""

    outcome: Outcome
    killer: str = ""


def load_mutants() -> list[Mutant]:
    """The faults of `mutants.toml`, in order."""
    mutants = []
    for entry in tomllib.loads(FAULTS.read_text())["mutant"]:
        parts = [entry, *entry.get("also", [])]
        edits = [Edit(file=e["file"], find=e["find"], replace=e["replace"]) for e in parts]
        mutants.append(
            Mutant(
                name=entry["name"],
                edits=tuple(edits),
                tests=tuple(entry.get("tests", ["sim"])),
                is_core=entry.get("core", False),
            )
        )
    return mutants


class Bench:
    """A copy of the workspace in which faults are tried.

    It lies in the target folder and shares what has been built of the dependencies.
    """

    def __init__(self) -> None:
        self.folder = TARGET / "mutants"
        self.crate = self.folder / "rust" / "treepo"
        self.environment = dict(
            os.environ,
            CARGO_TARGET_DIR=str(TARGET),
            SIM_SEEDS=str(NUM_SEEDS),
            PROPTEST_DISABLE_FAILURE_PERSISTENCE="1",
            PROPTEST_MAX_SHRINK_ITERS="0",
            PROPTEST_RNG_SEED="1",
        )
        self.environment.pop("SEED", None)
        self.timeouts: dict[str, float] = {}
        self._copy()

    def _copy(self) -> None:
        """The copies are new to cargo, which tells by a file's time whether it has to build."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("treepo", "treepo-kernels", "treepo-python"):
            source = ROOT / "rust" / name
            shutil.copytree(source, self.folder / "rust" / name, copy_function=shutil.copy)
        for name in ("Cargo.toml", "Cargo.lock"):
            shutil.copy(ROOT / name, self.folder)

    def build(self, tests: Iterable[str]) -> dict[str, str] | None:
        """Builds test targets; returns their executables by name, or None if one does not compile.

        Without debug information of the crate, which takes a third of the time.
        """
        command = ["cargo", "test", "-q", "-p", "treepo", "--features", "sim", "--no-run"]
        command += ["--config", "profile.dev.package.treepo.debug=false"]
        command += ["--message-format=json"]
        for test in tests:
            command += ["--lib"] if test == "lib" else ["--test", test]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=BUILD_TIMEOUT_S,
        )
        if done.returncode != 0:
            return None
        messages = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
        built = [message for message in messages if message.get("executable")]
        return {target_name(message["target"]): message["executable"] for message in built}

    def passes(self, test: str, executable: str) -> bool:
        """Whether a test target succeeds, and in time."""
        start = time.monotonic()
        try:
            done = subprocess.run(
                [executable, "-q"],
                cwd=self.crate,
                env=self.environment,
                capture_output=True,
                timeout=self.timeouts.get(test),
            )
        except subprocess.TimeoutExpired:
            return False
        seconds = time.monotonic() - start
        self.timeouts.setdefault(test, max(LEAST_TIMEOUT_S, PATIENCE * seconds))
        return done.returncode == 0

    def outcome(self, tests: tuple[str, ...]) -> Verdict:
        """Builds first, so that a compile error is no kill."""
        executables = self.build(tests)
        if executables is None:
            return Verdict(outcome=Outcome.NOT_BUILT)
        for test in tests:
            if not self.passes(test, executables[test]):
                return Verdict(outcome=Outcome.KILLED, killer=test)
        return Verdict(outcome=Outcome.SURVIVED)

    def judge(self, mutant: Mutant) -> Verdict:
        """Runs a mutant's tests against the crate with its fault."""
        originals = {e.file: (self.crate / "src" / e.file).read_text() for e in mutant.edits}
        try:
            self._write(mutated(mutant, originals))
            return self.outcome(mutant.tests)
        finally:
            self._write(originals)

    def _write(self, sources: Mapping[str, str]) -> None:
        for file, text in sources.items():
            (self.crate / "src" / file).write_text(text)


def target_name(target: Mapping[str, Any]) -> str:
    """How a mutant names this target of cargo's."""
    return "lib" if "lib" in target["kind"] else str(target["name"])


def mutated(mutant: Mutant, originals: Mapping[str, str]) -> dict[str, str]:
    """The sources with the fault.

    Raises:
        SystemExit: A text to replace is not there exactly once.
    """
    sources = dict(originals)
    for edit in mutant.edits:
        if (count := sources[edit.file].count(edit.find)) != 1:
            message = f"{mutant.name}: its text occurs {count} times in {edit.file}, not once"
            raise SystemExit(message)
        sources[edit.file] = sources[edit.file].replace(edit.find, edit.replace)
    return sources


def select(arguments: list[str]) -> list[Mutant]:
    """The mutants that the command line asks for.

    Raises:
        SystemExit: There is no mutant of this name.
    """
    mutants = load_mutants()
    known = {mutant.name: mutant for mutant in mutants}
    parser = argparse.ArgumentParser(description="Apply faults that the tests must notice.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults; default: the core ones")
    parser.add_argument("--all", action="store_true", help="apply every fault")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"unknown mutants {unknown}, known are {sorted(known)}")
    if options.names:
        return [known[name] for name in options.names]
    return [mutant for mutant in mutants if options.all or mutant.is_core]


def line(name: str, verdict: Verdict, seconds: float) -> str:
    """One line of the report."""
    return f"{name:42}  {verdict.outcome:9}  {seconds:5.1f} s  {verdict.killer}".rstrip()


def main(arguments: list[str]) -> int:
    """Prints one line a mutant."""
    chosen = select(arguments)
    tests = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
    bench = Bench()
    for mutant in chosen:
        mutated(mutant, {e.file: (bench.crate / "src" / e.file).read_text() for e in mutant.edits})
    begin = start = time.monotonic()
    verdict = bench.outcome(tests)
    is_right = verdict.outcome is Outcome.SURVIVED
    print(line("(no fault)", verdict, time.monotonic() - start), flush=True)
    for mutant in chosen if is_right else []:
        start = time.monotonic()
        verdict = bench.judge(mutant)
        is_right &= verdict.outcome is Outcome.KILLED
        print(line(mutant.name, verdict, time.monotonic() - start), flush=True)
    print(f"{len(chosen)} mutants in {time.monotonic() - begin:.0f} s")
    return 0 if is_right else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
