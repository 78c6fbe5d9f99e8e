"""Applies named faults to copies of the core crate; the simulator has to notice each.

    python tools/mutants.py [NAME ...]

A mutant is killed when tests/sim.rs compiles and fails. Exit code 0 if all are killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUM_SEEDS = 400
TIMEOUT_S = 200


class Outcome(StrEnum):
    """What the simulator said."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    NOT_BUILT = "NOT BUILT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One fault: `find` occurs exactly once in `file` and becomes `replace`."""

    name: str
    file: str
    find: str
    replace: str


MUTANTS = (
    Mutant(
        name="no_release",
        file="memory/mod.rs",
        find="""into_iter().chain(held) {
                self.pool.release(block)?;
            }""",
        replace="""into_iter().chain(held) {
                let _ = block;
            }""",
    ),
    Mutant(
        name="write_through_shared_block",
        file="memory/mod.rs",
        find="let adopts = self.pool.count(from) == 1;",
        replace="let adopts = self.pool.count(from) >= 1;",
    ),
    Mutant(
        name="dropped_copy",
        file="schedule/assemble.rs",
        find="writer.push_copy(copy);",
        replace="let _ = copy;",
    ),
    Mutant(
        name="off_by_one_tail",
        file="memory/mod.rs",
        find="pending = Some(Pending { from, num_slots: partial });",
        replace="pending = Some(Pending { from, num_slots: partial - 1 });",
    ),
    Mutant(
        name="copy_from_unfilled_block",
        file="memory/mod.rs",
        find="self.filled(self.block_at(tree, donor, full_blocks))",
        replace="self.block_at(tree, donor, full_blocks)",
    ),
    Mutant(
        name="key_without_stream",
        file="schedule/assemble.rs",
        find=".path(path).stream;",
        replace=".stream();",
    ),
    Mutant(
        name="fallback_keeps_old_prompt",
        file="search/mod.rs",
        find="self.fork(tree, restart.path, restart.at, restart.copies,",
        replace="""let at = self.forest.path(tree, restart.path)?.len() - 1;
            self.fork(tree, restart.path, at, restart.copies,""",
    ),
    Mutant(
        name="eos_first_token_missed",
        file="search/mod.rs",
        find="if reason.is_some() || segment_ends {",
        replace="""let is_first = own.len() + self.config.segment_len == segment_end + 1;
        if (reason.is_some() && !is_first) || segment_ends {""",
    ),
    Mutant(
        name="prefill_repeats_position",
        file="schedule/assemble.rs",
        find="writer.out.positions[i] = i64::from(position);",
        replace="""writer.out.positions[i] =
                i64::from(position.max(query.start + 1).min(query.end() - 1));""",
    ),
    Mutant(
        name="eviction_of_needed_blocks",
        file="memory/mod.rs",
        find="if own.end_block() <= needed.max(own.first_block) {",
        replace="if own.end_block() <= needed.min(own.first_block) {",
    ),
    Mutant(
        name="stale_table_of_a_new_row",
        file="schedule/mod.rs",
        find="self.rows[row as usize] = Some(Row { tree, path, table_len: 0 });",
        replace="self.rows[row as usize] = Some(Row { tree, path, table_len: 1 });",
    ),
    Mutant(
        name="budget_without_transfer",
        file="search/branch.rs",
        find="saturating_mul(num_finished + num_live)",
        replace="saturating_mul(num_live + 0 * num_finished)",
    ),
)


def copy_of_crate(folder: Path) -> Path:
    """Copies what the simulator's build needs; returns the crate's folder.

    The copies are new to cargo, which tells by a file's time whether it has to build again.
    """
    crate = folder / "rust" / "treepo"
    for name in ("treepo", "treepo-python"):
        source = ROOT / "rust" / name
        shutil.copytree(source, folder / "rust" / name, copy_function=shutil.copy)
    for name in ("Cargo.toml", "Cargo.lock"):
        shutil.copy(ROOT / name, folder)
    return crate


def test_command(*options: str) -> list[str]:
    """The command that builds or runs the simulator's test."""
    return ["cargo", "test", "-q", "-p", "treepo", "--features", "sim", "--test", "sim", *options]


def succeeds(command: list[str], folder: Path) -> bool:
    """Whether a command succeeds in time; a test that hangs does not."""
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    environment = dict(
        os.environ,
        CARGO_TARGET_DIR=str(Path(target) / "mutants"),
        CARGO_PROFILE_DEV_DEBUG="false",
        RUSTFLAGS="--cap-lints=allow",
        SIM_SEEDS=str(NUM_SEEDS),
    )
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def judge(mutant: Mutant | None, folder: Path) -> Outcome:
    """Runs the simulator against the crate with this fault, or without any."""
    crate = folder / "rust" / "treepo"
    if mutant is None:
        return outcome(folder)
    source = crate / "src" / mutant.file
    original = source.read_text()
    if (count := original.count(mutant.find)) != 1:
        message = f"{mutant.name}: its text occurs {count} times in {mutant.file}, not once"
        raise SystemExit(message)
    source.write_text(original.replace(mutant.find, mutant.replace))
    try:
        return outcome(folder)
    finally:
        source.write_text(original)


def outcome(folder: Path) -> Outcome:
    """Builds first, so that a compile error is no kill."""
    if not succeeds(test_command("--no-run"), folder):
        return Outcome.NOT_BUILT
    return Outcome.SURVIVED if succeeds(test_command(), folder) else Outcome.KILLED


def main(names: list[str]) -> int:
    """Prints one line a mutant."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := [name for name in names if name not in known]:
        print(f"unknown mutants {unknown}, known are {sorted(known)}", file=sys.stderr)
        return 2
    chosen = [known[name] for name in names] or list(MUTANTS)
    all_killed = True
    with tempfile.TemporaryDirectory(prefix="treepo-mutants-") as path:
        folder = Path(path)
        copy_of_crate(folder)
        for mutant in (None, *chosen):
            start = time.monotonic()
            verdict = judge(mutant, folder)
            expected = Outcome.KILLED if mutant else Outcome.SURVIVED
            all_killed &= verdict is expected
            name = mutant.name if mutant else "(no fault)"
            print(f"{name:28}  {verdict:10}  {time.monotonic() - start:6.1f} s", flush=True)
    return 0 if all_killed else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
