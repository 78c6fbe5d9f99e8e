"""Trees of a tabular policy, grown by the real search."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treepo import core
from treepo.forest import Forest
from treepo.lab.policy import EOS, F64, I64, TabularPolicy

Segment = tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Token ids, log-probs and entropies."""
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Sampled:
    """Trees of a policy and where each of their tokens was drawn.

    Attributes:
        forest: Trees, one prompt after the other: tree t has prompt t mod K.
        rewards: f64[P], reward of each trajectory.
        prompt: i64[N], prompt of each unique token.
        state: i64[N], state in which it was drawn, -1 for the prompt itself.
        token: i64[N], its id.
    """

    forest: Forest
    rewards: F64
    prompt: I64
    state: I64
    token: I64


def grow(policy: TabularPolicy, search: core.SearchConfig, num_trees: int, seed: int) -> Sampled:
    """Grow trees.

    Args:
        policy: The policy.
        search: The rules; segments may not be longer in all than the policy's sequences.
        num_trees: Number of trees.
        seed: Of the search and of the tokens.
    """
    machine = core.Search(search, seed=seed)
    for tree in range(num_trees):
        prompt = policy.prompt_token(tree % policy.num_prompts)
        machine.add_tree(tree, np.array([prompt], dtype=np.uint32))
    draw = _Draw(policy, seed)
    while not machine.is_done():
        for tree, path, limit in machine.segments().tolist():
            prefix = machine.tokens(tree, path)[1:].tolist()
            segment = draw.segment(tree % policy.num_prompts, prefix, limit)
            machine.complete_segment(tree, path, *segment)
    return _describe(policy, Forest(machine.forest()))


class _Draw:
    """Draws segments token by token."""

    def __init__(self, policy: TabularPolicy, seed: int) -> None:
        logprobs = policy.log_probs()
        probs = np.exp(logprobs)
        entropy = -np.where(probs > 0, probs * np.where(probs > 0, logprobs, 0.0), 0.0).sum(-1)
        self._arity = policy.arity
        # Lists: a look-up of one number in an array takes longer than the rest of a draw.
        self._cumulative = probs.cumsum(-1).tolist()
        self._logprobs = logprobs.tolist()
        self._entropy = entropy.tolist()
        self._rng = np.random.default_rng([seed, 1])
        self._uniforms: list[float] = []

    def segment(self, prompt: int, prefix: list[int], limit: int) -> Segment:
        """Continue a prefix by `limit` tokens at most; returns ids, log-probs and entropies."""
        state = 0
        for token in prefix:
            state = self._arity * state + token
        ids, logprobs, entropies = [], [], []
        for _ in range(limit):
            token = self._token(self._cumulative[prompt][state])
            ids.append(token)
            logprobs.append(self._logprobs[prompt][state][token])
            entropies.append(self._entropy[prompt][state])
            if token == EOS:
                break
            state = self._arity * state + token
        return (
            np.array(ids, np.uint32),
            np.array(logprobs, np.float32),
            np.array(entropies, np.float32),
        )

    def _token(self, cumulative: list[float]) -> int:
        if not self._uniforms:
            self._uniforms = self._rng.random(_BLOCK).tolist()
        u = self._uniforms.pop() * cumulative[-1]
        token = 0
        while cumulative[token] <= u:
            token += 1
        return token


def _describe(policy: TabularPolicy, forest: Forest) -> Sampled:
    paths, tokens = forest.paths, forest.tokens
    path = np.repeat(np.arange(forest.num_paths), np.diff(paths.token_start))
    place = np.arange(forest.num_tokens)
    depth = place - paths.token_start[path] + paths.at[path]
    before = place - 1
    is_first = (place == paths.token_start[path]) & (paths.parent[path] >= 0)
    parent = paths.parent[path[is_first]]
    before[is_first] = paths.token_start[parent] + paths.at[path[is_first]] - 1 - paths.at[parent]
    token = tokens.id.astype(np.int64)
    state = np.full(forest.num_tokens, -1, dtype=np.int64)
    after = np.zeros(forest.num_tokens, dtype=np.int64)
    for level in range(1, policy.depth + 1):
        here = np.flatnonzero(depth == level)
        state[here] = after[before[here]]
        after[here] = policy.arity * state[here] + token[here]
    last = np.array([forest.token_index(p)[-1] for p in range(forest.num_paths)])
    prompt = paths.tree[path].astype(np.int64) % policy.num_prompts
    end = np.where(token[last] == EOS, state[last], after[last])
    rewards = policy.rewards[prompt[last], end]
    return Sampled(forest, rewards, prompt, state, token)
