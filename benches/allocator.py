"""treepo's forest and memory against vLLM's KV cache manager on the same tree, ABAB.

The tree: 512 tokens, 32 nodes of 512 on them, 16 children of 64 on each node: 512 paths of 1,088
tokens in blocks of 16. Forks are also timed on paths of 64 and 6,250 blocks. Without
--peer-python only treepo's side runs. treepo's side is Rust, vLLM's Python, as each is embedded.

Ratios are given of the medians over the rounds and of the best rounds: another process that
takes the core away lengthens vLLM's longer rounds more.

    python benches/allocator.py --peer-python PATH/bin/python   # see peers/vllm_allocator.py
"""

import argparse
import json
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import environment
import rust_cases

CASES = ("fork_64", "fork_6250", "append", "free_1088")
RUNS_OF_A_ROUND = 5
PEER = environment.REPO / "benches" / "peers" / "vllm_allocator.py"
FORK_NS, FORK_GROWTH, FREE_RATIO = 300.0, 2.0, 20.0

Figures = dict[str, float]


def main() -> None:
    options = parse()
    program = rust_cases.build()
    ours: list[Figures] = []
    peer: list[Figures] = []
    versions: dict[str, Any] = {}
    for _ in range(options.rounds):
        ours.append(rust_cases.median_times(program, CASES, RUNS_OF_A_ROUND))
        if options.peer_python:
            figures, versions = measure_peer(options.peer_python)
            peer.append(figures)
    treepo, vllm = over_rounds(ours, statistics.median), over_rounds(peer, statistics.median)
    ratios = compare(treepo, vllm)
    best_ratios = compare(over_rounds(ours, min), over_rounds(peer, min))
    bars = judge(treepo, ratios, best_ratios)
    report(treepo, vllm, ratios, best_ratios)
    for bar, verdict in bars.items():
        print(f"{bar}: {verdict['value']:.4g}, {'holds' if verdict['holds'] else 'MISSED'}")
    result = {
        "options": vars(options),
        "peer": versions or None,
        "unit": "ns of one operation",
        "treepo": treepo,
        "vllm": vllm,
        "vllm_over_treepo": ratios,
        "vllm_over_treepo_best_rounds": best_ratios,
        "bars": bars,
        "rounds": {"treepo": ours, "vllm": peer},
    }
    print(environment.write("allocator", result))


def measure_peer(python: str) -> tuple[Figures, dict[str, Any]]:
    """One round of vLLM: nanoseconds by `hash.operation`, and what ran."""
    variables = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    output = subprocess.run(
        [python, str(PEER), "--rounds", "1"],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    measured = json.loads(output.stdout.splitlines()[-1])
    figures = {
        f"{variant}.{operation}": 1e3 * value
        for variant, operations in measured.pop("us").items()
        for operation, (value,) in operations.items()
    }
    return figures, measured


def over_rounds(rounds: list[Figures], choose: Callable[[list[float]], float]) -> Figures:
    names = rounds[0] if rounds else ()
    return {name: choose([figures[name] for figures in rounds]) for name in names}


def compare(treepo: Figures, vllm: Figures) -> Figures:
    return {label: vllm[theirs] / treepo[own] for label, own, theirs in pairs(vllm)}


def pairs(vllm: Figures) -> Iterator[tuple[str, str, str]]:
    """What is compared: label, treepo's case, vLLM's figure."""
    for theirs in vllm:
        variant, operation = theirs.split(".")
        is_long = variant.endswith("_6250_blocks")
        cases = {
            "fork": "fork_6250" if is_long else "fork_64",
            "fork_without_hashing": "fork_6250" if is_long else "fork_64",
            "append": "append",
            "free": "free_1088",
        }
        if operation in cases:
            yield f"{operation}, {variant}", cases[operation], theirs


def judge(treepo: Figures, *ratios: Figures) -> dict[str, Any]:
    """The bars: a bound, the figure, and whether it holds."""
    growth = treepo["fork_6250"] / treepo["fork_64"]
    bars = {
        "fork at 64 blocks <= 300 ns": (treepo["fork_64"], treepo["fork_64"] <= FORK_NS),
        "fork at 6,250 blocks <= 300 ns": (treepo["fork_6250"], treepo["fork_6250"] <= FORK_NS),
        "fork at 6,250 over 64 blocks <= 2": (growth, 1 / FORK_GROWTH <= growth <= FORK_GROWTH),
    }
    labelled = [item for given in ratios for item in given.items()]
    frees = [ratio for label, ratio in labelled if label.startswith("free")]
    if frees:
        bars["free, vLLM over treepo >= 20"] = (min(frees), min(frees) >= FREE_RATIO)
    return {bar: {"value": value, "holds": holds} for bar, (value, holds) in bars.items()}


def report(treepo: Figures, vllm: Figures, ratios: Figures, best_ratios: Figures) -> None:
    for title, figures in (("treepo", treepo), ("vLLM", vllm)):
        for name, value in figures.items():
            print(f"{title:8}{name:44}{value:14,.1f} ns")
    for label, ratio in ratios.items():
        best = best_ratios[label]
        print(f"vLLM over treepo: {label:42}{ratio:12,.1f} x, best rounds {best:12,.1f} x")
    if not vllm:
        print("vLLM did not run: give --peer-python the Python of an environment with vllm-cpu")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="Python of an environment with vllm-cpu")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
