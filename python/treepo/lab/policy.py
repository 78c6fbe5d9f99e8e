"""A policy that is a table: one row of logits for each prefix that can be sampled.

Tokens 1..A go on, token 0 ends the sequence; a sequence holds `depth` tokens at most. States are
numbered as in a heap of arity A: the prompt is state 0, and token a in state s leads to A s + a.
The states from `num_states` on are full sequences.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from treepo.errors import InvalidInputError

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

EOS = 0
"""The token that ends a sequence."""


@dataclass(frozen=True, slots=True)
class TabularPolicy:
    """A softmax policy over K prompts, with the reward of every sequence.

    Attributes:
        logits: f64[K, S, A + 1], one row for each prompt and state; -inf for what cannot happen.
        rewards: f64[K, S + A^depth], reward of a sequence that ends in a state: by token 0 in a
            state below S, by its length in one from S on.
        depth: Tokens of a sequence at most.
    """

    logits: F64
    rewards: F64
    depth: int

    def __post_init__(self) -> None:
        arity = self.arity
        if arity < 2:
            raise InvalidInputError(f"a policy needs 2 tokens beside the end, got {arity}")
        num_states = (arity**self.depth - 1) // (arity - 1)
        num_prompts = len(self.logits)
        if self.logits.shape[1] != num_states:
            raise InvalidInputError(
                f"{self.logits.shape[1]} rows of logits for depth {self.depth} and {arity} tokens, "
                f"expected {num_states}"
            )
        expected = (num_prompts, num_states + arity**self.depth)
        if self.rewards.shape != expected:
            raise InvalidInputError(f"rewards have shape {self.rewards.shape}, expected {expected}")

    @property
    def num_prompts(self) -> int:
        """Prompts, K."""
        return len(self.logits)

    @property
    def num_states(self) -> int:
        """States in which a token is drawn, S."""
        return int(self.logits.shape[1])

    @property
    def arity(self) -> int:
        """Tokens that go on, A."""
        return int(self.logits.shape[2]) - 1

    def prompt_token(self, prompt: int) -> int:
        """Return the token id that stands for a prompt."""
        return self.arity + 1 + prompt

    def log_probs(self) -> F64:
        """Return log-probabilities of all tokens, f64[K, S, A + 1]."""
        top = self.logits.max(-1, keepdims=True)
        shifted = self.logits - top
        result: F64 = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        return result


def random_policy(
    seed: int = 0,
    *,
    depth: int = 6,
    arity: int = 2,
    values: tuple[float, ...] = (0.2, 0.5, 0.8),
) -> TabularPolicy:
    """Return a policy of random logits, whose rewards depend on tokens all along the sequence.

    Args:
        seed: Of logits and rewards.
        depth: Tokens of a sequence at most.
        arity: Tokens that go on.
        values: About the part of sequences that are right, for each prompt.
    """
    rng = np.random.default_rng(seed)
    num_prompts = len(values)
    num_states = (arity**depth - 1) // (arity - 1)
    logits = rng.normal(size=(num_prompts, num_states, arity + 1))
    logits[:, :, EOS] -= 1.5
    score = _scores(rng, num_prompts, num_states + arity**depth, arity)
    threshold = [np.quantile(row, 1 - value) for row, value in zip(score, values, strict=True)]
    rewards = (score > np.array(threshold)[:, None]).astype(np.float64)
    return TabularPolicy(logits, rewards, depth)


def _scores(rng: np.random.Generator, num_prompts: int, num_ends: int, arity: int) -> F64:
    """Return a score for each end: each token adds something, and so does the whole sequence."""
    score = np.zeros((num_prompts, num_ends))
    for state in range(1, num_ends):
        score[:, state] = score[:, (state - 1) // arity] + rng.normal(size=num_prompts)
    return score + 0.5 * rng.normal(size=score.shape)
