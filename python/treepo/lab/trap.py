"""What forks at surprising tokens do to values: the surprising draw is counted as a sample.

One token decides: it is right with probability 0.9, so the value of the state before it is 0.9. The
tokens behind it say nothing; each is one of two with equal chances, and so has a surprisal of 0.69
nats whatever comes. A rule that forks at the largest surprisal forks at the first token if and only
if that token was wrong (2.30 nats), and the mean of the k fresh siblings and the original is then
k / (k + 1) times 0.9. Full-vocabulary entropy is known before the draw and has no such effect.
"""

from dataclasses import dataclass

import numpy as np

from treepo import core
from treepo.lab.policy import TabularPolicy
from treepo.lab.sampler import grow

TRUE_VALUE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class TrapResult:
    """Value of the states that a rule forks at.

    Attributes:
        rule: `token_surprisal` or `token_entropy`.
        siblings: Fresh continuations of a fork.
        estimate: Mean over forks of the mean reward of the original and its siblings.
        half_width: Half of its 95 % interval.
        num_forks: Forks that the mean is over.
    """

    rule: str
    siblings: int
    estimate: float
    half_width: float
    num_forks: int


def spring(rule: str, siblings: int, num_trees: int, seed: int = 0) -> TrapResult:
    """Grow trees with one fork each, and read off the value of the state before the first token.

    Args:
        rule: `token_surprisal`, or `token_entropy`, for which the tokens behind the first are
            nearly certain, so that it forks at the first.
        siblings: Fresh continuations of a fork.
        num_trees: Trees.
        seed: Seed.
    """
    other = 0.5 if rule == "token_surprisal" else 0.99
    sampled = grow(_policy(other), _search(rule, siblings), num_trees, seed)
    paths = sampled.forest.paths
    first = paths.parent == -1
    at_first_token = np.zeros(len(first), dtype=bool)
    at_first_token[~first] = paths.at[~first] == 1
    forked = np.bincount(paths.tree, at_first_token, minlength=num_trees) > 0
    means = np.bincount(paths.tree, sampled.rewards) / np.bincount(paths.tree)
    chosen = means[forked]
    return TrapResult(
        rule=rule,
        siblings=siblings,
        estimate=float(chosen.mean()),
        half_width=float(1.96 * chosen.std() / np.sqrt(len(chosen))),
        num_forks=len(chosen),
    )


def _policy(other: float) -> TabularPolicy:
    """Return three tokens: the first decides, the others are the first of two with `other`."""
    depth, arity = 3, 2
    num_states = (arity**depth - 1) // (arity - 1)
    logits = np.full((1, num_states, arity + 1), -np.inf)
    logits[0, :, 1:] = np.log([other, 1 - other])
    logits[0, 0, 1:] = np.log([TRUE_VALUE, 1 - TRUE_VALUE])
    rewards = np.zeros((1, num_states + arity**depth))
    for state in range(1, rewards.shape[1]):
        first = state
        while first > arity:
            first = (first - 1) // arity
        rewards[0, state] = float(first == 1)
    return TabularPolicy(logits, rewards, depth)


def _search(rule: str, siblings: int) -> core.SearchConfig:
    return core.SearchConfig(
        width=1 + siblings,
        segment_len=2,
        max_depth=2,
        max_completion_len=3,
        initial_divergence=1,
        branch_factor=1,
        branch={"by": rule, "num_positions": 1, "copies": siblings},
        fallback={"from": "nothing"},
        eos_token_ids=[0],
    )
