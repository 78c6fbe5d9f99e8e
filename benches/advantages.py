"""Advantages of a large forest, every preset: seconds for 10,000 trees of 16 leaves.

The first call on a forest derives its nodes; they are timed apart. Bar: 0.2 s a call.

    python benches/advantages.py
"""

import argparse
import statistics
import time

import numpy as np

import environment
from treepo import core
from treepo.advantages import PRESETS, credit
from treepo.forest import FinishReason, Forest

BAR_S = 0.2


def main() -> None:
    options = parse()
    forest = binary_forest(options.trees, options.depth, options.segment_len)
    rewards = np.random.default_rng(0).integers(0, 2, forest.num_paths).astype(np.float64)
    began = time.perf_counter()
    forest.nodes()
    nodes_s = time.perf_counter() - began
    seconds = {name: timed(forest, rewards, name, options.repeats) for name in PRESETS}
    print(f"{forest.num_trees} trees, {forest.num_paths} leaves, {forest.num_tokens} tokens")
    print(f"  nodes, once: {nodes_s:.3f} s")
    for name, value in seconds.items():
        print(f"  {name:24}{value:.3f} s{'' if value <= BAR_S else ', above the bar'}")
    result = {"options": vars(options), "bar_s": BAR_S, "nodes_s": nodes_s, "seconds": seconds}
    print(environment.write("advantages", result))


def binary_forest(num_trees: int, depth: int, segment_len: int) -> Forest:
    """Trees that branch in two `depth` times; the trees are copies of one."""
    forest = core.Forest()
    tree = forest.add_tree(0, np.zeros(8, dtype=np.uint32))
    zeros = np.zeros(segment_len, dtype=np.float32)
    paths = [0]
    for level in range(depth):
        at = 8 + level * segment_len
        paths = [child for path in paths for child in (path, forest.fork(tree, path, at))]
        for path in paths:
            forest.append(tree, path, np.zeros(segment_len, dtype=np.uint32), zeros, zeros)
            forest.mark(tree, path)
    for path in paths:
        forest.finish(tree, path, int(FinishReason.STOP))
    return Forest.concatenate([Forest(forest)] * num_trees)


def timed(forest: Forest, rewards: np.ndarray, preset: str, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        credit(forest, rewards, preset)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", type=int, default=10_000)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--segment-len", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
