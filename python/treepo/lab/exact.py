"""Values and the gradient of a tabular policy, by enumeration.

This is what estimators are held against, so it shares no code with them: it does not import
`treepo.advantages`, and a test holds it to that.
"""

from dataclasses import dataclass

import numpy as np

from treepo.lab.policy import EOS, F64, TabularPolicy


@dataclass(frozen=True, slots=True)
class Exact:
    """The truth about a policy.

    Attributes:
        objective: Expected reward, mean over prompts.
        values: f64[K, S], expected reward from each state.
        action_values: f64[K, S, A + 1], expected reward after each token in each state.
        reach: f64[K, S], probability that a sequence passes each state.
        gradient: f64[K, S, A + 1], gradient of the objective by the logits.
    """

    objective: float
    values: F64
    action_values: F64
    reach: F64
    gradient: F64


def solve(policy: TabularPolicy) -> Exact:
    """Enumerate all sequences.

    Sources: the policy gradient theorem for a softmax table,
    d J / d logit(s, a) = P(s) pi(a | s) (Q(s, a) - V(s)).
    """
    num_states, arity = policy.num_states, policy.arity
    probs = np.exp(policy.log_probs())
    # From the last state up: the value of a state behind S is the reward of that full sequence.
    value = policy.rewards.copy()
    action_value = np.zeros_like(probs)
    for state in reversed(range(num_states)):
        first = arity * state + 1
        action_value[:, state, EOS] = policy.rewards[:, state]
        action_value[:, state, 1:] = value[:, first : first + arity]
        value[:, state] = (probs[:, state] * action_value[:, state]).sum(-1)
    reach = np.zeros_like(value)
    reach[:, 0] = 1.0
    for state in range(num_states):
        first = arity * state + 1
        reach[:, first : first + arity] = reach[:, state, None] * probs[:, state, 1:]
    values, reach = value[:, :num_states], reach[:, :num_states]
    advantage = action_value - values[:, :, None]
    gradient = reach[:, :, None] * probs * advantage / policy.num_prompts
    return Exact(float(values[:, 0].mean()), values, action_value, reach, gradient)
