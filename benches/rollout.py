"""Rollouts on one engine: a tree of width n against n independent completions, ABAB.

Prints trajectories/s, returned tokens/s (shared tokens counted for each completion), decoded
tokens/s, and the bound returned/decoded that the tree could gain at equal cost a decoded token.

    python benches/rollout.py                              # the embedded model
    python benches/rollout.py --model models/SmolLM2-135M-Instruct --prompts 8 --width 16
"""

import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import environment
from treepo import Engine, EngineConfig, Forest, SamplingParams, SearchConfig
from treepo.tasks import embedded


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    path = options.model or str(embedded.MODEL_PATH)
    engine = Engine.from_pretrained(path, EngineConfig(), device=options.device)
    prompts = word_problems(options.prompts) if options.model else multiplications(options.prompts)
    tree = SearchConfig(
        width=options.width, segment_len=options.segment_len, max_depth=options.max_depth
    )
    flat = SearchConfig.flat(options.width, tree.completion_len)
    runs: dict[str, list[dict[str, float]]] = {"tree": [], "flat": []}
    for search in (tree, flat):
        measure(engine, prompts, search, seed=1_000)  # warm-up
    for repeat in range(options.repeats):
        for name, search in (("tree", tree), ("flat", flat)):
            runs[name].append(measure(engine, prompts, search, seed=repeat))
    report(options, runs)


def measure(
    engine: Engine, prompts: list[Any], search: SearchConfig, seed: int
) -> dict[str, float]:
    """One rollout."""
    began = time.perf_counter()
    forest: Forest = engine.rollout(prompts, search, SamplingParams(), seed=seed)
    seconds = time.perf_counter() - began
    returned, decoded = forest.num_completion_tokens, forest.num_unique_completion_tokens
    return {
        "seconds": seconds,
        "trajectories_per_s": forest.num_paths / seconds,
        "returned_tokens_per_s": returned / seconds,
        "decoded_tokens_per_s": decoded / seconds,
        "bound": returned / decoded,
        "steps": float(engine.stats.steps),
        "recomputed_tokens": float(engine.stats.recomputed_tokens),
        "preemptions": float(engine.stats.preemptions),
    }


def report(options: argparse.Namespace, runs: dict[str, list[dict[str, float]]]) -> None:
    medians = {
        name: {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        for name, measured in runs.items()
    }
    speedup = medians["tree"]["trajectories_per_s"] / medians["flat"]["trajectories_per_s"]
    for name, values in medians.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    print(f"tree over flat, trajectories/s: {speedup:.2f} (bound {medians['tree']['bound']:.2f})")
    label = "smollm2" if options.model else "embedded"
    file = environment.write(
        f"rollout_{label}_{options.prompts}x{options.width}",
        {"options": vars(options), "medians": medians, "speedup": speedup, "runs": runs},
    )
    print(file)


def multiplications(count: int) -> list[Any]:
    """Prompts of the embedded task."""
    return [row["prompt"] for row in embedded.heldout_examples(count)]


def word_problems(count: int) -> list[Any]:
    """Arithmetic word problems as chat messages."""
    problems = [
        f"Tom has {3 + i % 7} boxes with {12 + i} apples each and eats {i % 5 + 1}. "
        "How many apples are left? Think step by step."
        for i in range(count)
    ]
    return [[{"role": "user", "content": problem}] for problem in problems]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="Hugging Face folder; the embedded model if absent")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--segment-len", type=int, default=9)
    parser.add_argument("--max-depth", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
