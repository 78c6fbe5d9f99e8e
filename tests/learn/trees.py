"""Trees of the golden vectors, and small ones by hand."""

import json
from pathlib import Path

import numpy as np

from treepo import core
from treepo.forest import FinishReason, Forest

GOLDEN = json.loads((Path(__file__).parent / "golden/advantages.json").read_text())["trees"]
PUBLISHED = json.loads((Path(__file__).parent / "golden/published.json").read_text())


def append(forest, tree, path, num_tokens, logprob=0.0):
    zeros = np.zeros(num_tokens, dtype=np.float32)
    forest.append(tree, path, np.zeros(num_tokens, dtype=np.uint32), zeros + logprob, zeros)


def add_tree(forest, paths, segment_lengths, prompt_len=3, token_logprobs=None):
    """Grow a tree from leaves such as 't00#1-0#2-1'; a known beginning is forked."""
    tree = forest.add_tree(0, np.zeros(prompt_len, dtype=np.uint32))
    known = {}
    token_logprobs = token_logprobs or [[0.0] * len(lengths) for lengths in segment_lengths]
    for leaf, (name, lengths) in enumerate(zip(paths, segment_lengths, strict=True)):
        nodes = name.split("#")
        shared = max(k for k in range(1, len(nodes)) if k == 1 or "#".join(nodes[:k]) in known)
        parent, length = known.get("#".join(nodes[:shared]), (0, prompt_len))
        path = forest.fork(tree, parent, length) if leaf else 0
        for k, num_tokens in enumerate(lengths[shared - 1 :], start=shared + 1):
            append(forest, tree, path, num_tokens, token_logprobs[leaf][k - 2])
            forest.mark(tree, path)
            length += num_tokens
            known["#".join(nodes[:k])] = (path, length)
        forest.finish(tree, path, int(FinishReason.STOP))


def golden_forest(trees):
    forest = core.Forest()
    for tree in trees:
        token_logprobs = tree.get("token_logprobs")
        add_tree(forest, tree["paths"], tree["segment_lengths"], token_logprobs=token_logprobs)
    return Forest(forest)


def nodes_of(forest, path):
    """A trajectory's nodes from the root's child down."""
    nodes, found, node = forest.nodes(), [], forest.nodes().leaf[path]
    while nodes.parent[node] >= 0:
        found.append(node)
        node = nodes.parent[node]
    return found[::-1]


def rewards_of(trees):
    return np.array([reward for tree in trees for reward in tree["rewards"]])


def assert_golden(actual, expected):
    expected = np.array(expected)
    difference = np.abs(actual - expected) / np.maximum(1, np.abs(expected))
    assert difference.max() < 1e-5


def flat_forest(num_leaves_of_trees):
    forest = core.Forest()
    for num_leaves in num_leaves_of_trees:
        add_tree(forest, [f"t#1-{i}" for i in range(num_leaves)], [[2]] * num_leaves)
    return Forest(forest)
