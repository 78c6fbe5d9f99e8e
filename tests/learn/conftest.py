"""Forests built by hand and at random, for the tests of training."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from treepo import core
from treepo.forest import FinishReason, Forest

GrowForest = Callable[..., Forest]

# Lets the tests import what they share from their own folder.
sys.path.insert(0, str(Path(__file__).parent))
from tiny import TINY  # noqa: E402


class Grower:
    """Grows one core forest token by token, with random ids and old log-probs."""

    def __init__(self, seed: int, vocab: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.vocab = vocab
        self.forest = core.Forest()
        self.lengths: dict[tuple[int, int], int] = {}
        self.marks: dict[tuple[int, int], list[int]] = {}

    def ids(self, count: int) -> np.ndarray:
        return self.rng.integers(0, self.vocab, count, dtype=np.uint32)

    def tree(self, prompt_len: int) -> int:
        tree = self.forest.add_tree(int(self.rng.integers(1 << 40)), self.ids(prompt_len))
        self.lengths[tree, 0] = prompt_len
        self.marks[tree, 0] = []
        return tree

    def sample(self, tree: int, path: int, count: int) -> None:
        # Old log-probs of nearly zero to -6 put most ratios far outside the clip range.
        logprobs = self.rng.uniform(-6, -0.05, count).astype(np.float32)
        entropies = self.rng.uniform(0, 2, count).astype(np.float32)
        self.forest.append(tree, path, self.ids(count), logprobs, entropies)
        self.lengths[tree, path] += count

    def give(self, tree: int, path: int, count: int) -> None:
        self.forest.append_given(tree, path, self.ids(count))
        self.lengths[tree, path] += count

    def mark(self, tree: int, path: int) -> None:
        self.forest.mark(tree, path)
        self.marks[tree, path].append(self.lengths[tree, path])

    def fork(self, tree: int, path: int, at: int) -> int:
        child = self.forest.fork(tree, path, at)
        self.lengths[tree, child] = at
        self.marks[tree, child] = []
        return child

    def finish(self) -> Forest:
        for tree, path in self.lengths:
            self.forest.finish(tree, path, int(FinishReason.STOP))
        self.forest.check()
        return Forest(self.forest)


def _extend(grower: Grower, tree: int, path: int) -> None:
    rng = grower.rng
    for _ in range(int(rng.integers(1, 4))):
        extend = grower.give if rng.random() < 0.25 else grower.sample
        extend(tree, path, int(rng.integers(1, 6)))
        if rng.random() < 0.4:
            grower.mark(tree, path)


def _grow_tree(grower: Grower, num_paths: int) -> None:
    rng = grower.rng
    prompt_len = int(rng.integers(1, 6))
    tree = grower.tree(prompt_len)
    _extend(grower, tree, 0)
    for path in range(1, num_paths):
        parent = int(rng.integers(path))
        at_mark = grower.marks[tree, parent] if rng.random() < 0.5 else []
        at = int(rng.choice(at_mark)) if at_mark else None
        if at is None:
            at = int(rng.integers(prompt_len, grower.lengths[tree, parent] + 1))
        child = grower.fork(tree, parent, at)
        if rng.random() < 0.9:
            _extend(grower, tree, child)
        if rng.random() < 0.3:
            _extend(grower, tree, parent)
    grower.sample(tree, 0, 1)


@pytest.fixture
def grow_forest() -> GrowForest:
    """Random irregular forests: forks at and off marks, one-token nodes, given tokens."""

    def grow(seed: int, vocab: int, num_trees: int = 3, num_paths: int = 7) -> Forest:
        grower = Grower(seed, vocab)
        for _ in range(num_trees):
            _grow_tree(grower, num_paths)
        return grower.finish()

    return grow


@pytest.fixture
def small_forest() -> Forest:
    """Two trees; the first is prompt a b, path 0: c D | e, path 1 forks at 3: f g, with D given.

    Absolute positions of path 0: a0 b1 c2 D3 e4; of path 1: a0 b1 c2 f3 g4. The second tree is
    prompt a, path 0: b.
    """
    forest = core.Forest()

    def sample(tree: int, path: int, token: int, logprob: float) -> None:
        logprobs = np.array([logprob], np.float32)
        forest.append(tree, path, np.array([token], np.uint32), logprobs, -logprobs)

    tree = forest.add_tree(7, np.array([10, 11], np.uint32))
    sample(tree, 0, 12, -1.0)
    forest.append_given(tree, 0, np.array([13], np.uint32))
    sample(tree, 0, 14, -2.0)
    child = forest.fork(tree, 0, 3)
    sample(tree, child, 15, -3.0)
    sample(tree, child, 16, -4.0)
    other = forest.add_tree(8, np.array([20], np.uint32))
    sample(other, 0, 21, -5.0)
    for tree_index, path in ((tree, 0), (tree, child), (other, 0)):
        forest.finish(tree_index, path, int(FinishReason.STOP))
    return Forest(forest)


def norm_in_own_dtype(self, hidden_states):
    variance = hidden_states.square().mean(-1, keepdim=True)
    return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


def rotary_in_own_dtype(self, x, position_ids):
    angles = position_ids[:, :, None].to(x.dtype) * self.inv_freq.to(x.dtype)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


@pytest.fixture
def llama64(monkeypatch):
    """A tiny random Llama whose norms and rotary embedding really compute in float64."""
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm_in_own_dtype)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", rotary_in_own_dtype)
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=True)).double()
