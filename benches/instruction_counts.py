"""Instructions of one operation of each case of the Rust benches, counted by valgrind.

Times depend on the machine and its load, these counts on neither. A case is run twice, with and
without its run; the difference, divided by the operations of the run, is printed beside the
stored count.

    python benches/instruction_counts.py [CASE ...]      # needs valgrind (Debian: valgrind)
"""

import argparse
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import environment
import rust_cases

NAME = "instruction_counts"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="all if none is named")
    parser.add_argument("--no-write", action="store_true", help="keep the stored counts")
    options = parser.parse_args()
    program = rust_cases.build()
    sizes = json.loads(rust_cases.run(program, "sizes", options.cases))
    before = stored()
    counts: dict[str, float] = {}
    for name, num_items in sizes.items():
        spent = count(program, "run", name) - count(program, "build", name)
        counts[name] = round(spent / num_items, 1)
        change = f"{counts[name] / before[name] - 1:+.1%}" if name in before else "new"
        print(f"{name:24}{counts[name]:16,.1f} instructions  {change}", flush=True)
    if not options.no_write:
        result: dict[str, Any] = {"unit": "instructions of one operation"}
        result["counts"] = {**before, **counts}
        print(environment.write(NAME, result))


def stored() -> dict[str, float]:
    """The counts of benches/results, none if there is no such file."""
    file = environment.RESULTS / f"{NAME}.json"
    counts: dict[str, float] = json.loads(file.read_text())["counts"] if file.exists() else {}
    return counts


def count(program: Path, mode: str, case: str) -> int:
    """Instructions of a whole process."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    done = subprocess.run(
        [*command, str(program), mode, case], capture_output=True, text=True, check=True
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found, done.stderr
    return int(found[1])


if __name__ == "__main__":
    main()
