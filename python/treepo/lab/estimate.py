"""The gradient that a credit gives on sampled trees, and how far it is from the exact one."""

from dataclasses import dataclass

import numpy as np

from treepo.advantages import Credit, Level
from treepo.advantages.nodes import subtree_sums
from treepo.advantages.pairs import pairs_of
from treepo.forest import Forest
from treepo.lab.policy import F64, TabularPolicy
from treepo.lab.sampler import Sampled

NUM_GROUPS = 20
"""Groups of batches that intervals are made from, by leaving one out at a time."""
_Z = 1.96


def gradients(
    policy: TabularPolicy, sampled: Sampled, credit: Credit, leaf_weights: F64, batch_size: int
) -> F64:
    """Return the gradient estimate of each batch of trees.

    A trajectory l of a tree counts by w_l, which add up to 1 in a tree:
    g = mean over trees of sum_l w_l sum_t A(l, t) c(t) d log pi(t), c the weight of shared tokens.

    Args:
        policy: The policy.
        sampled: Its trees.
        credit: Advantages and weights of tokens.
        leaf_weights: f64[P], how much each trajectory counts in its tree; any unit.
        batch_size: Trees of a batch; a multiple of the number of prompts.

    Returns:
        f64[B, K * S * (A + 1)]; trees that fill no batch are left out.
    """
    forest = sampled.forest
    coefficient = _of_tokens(forest, credit, leaf_weights)
    num_batches = forest.num_trees // batch_size
    path = np.repeat(np.arange(forest.num_paths), np.diff(forest.paths.token_start))
    batch = forest.paths.tree[path] // batch_size
    used = np.flatnonzero((sampled.state >= 0) & (batch < num_batches))
    shape = (num_batches, policy.num_prompts, policy.num_states, policy.arity + 1)
    place = np.ravel_multi_index(
        (batch[used], sampled.prompt[used], sampled.state[used], sampled.token[used]), shape
    )
    chosen = np.bincount(place, coefficient[used], minlength=int(np.prod(shape))).reshape(shape)
    probs = np.exp(policy.log_probs())
    score = chosen - chosen.sum(-1, keepdims=True) * probs
    result: F64 = score.reshape(num_batches, -1) / batch_size
    return result


def _of_tokens(forest: Forest, credit: Credit, leaf_weights: F64) -> F64:
    """Return what stands before d log pi of each unique token, f64[N]."""
    nodes, tree = forest.nodes(), forest.paths.tree
    share = leaf_weights / np.bincount(tree, leaf_weights, minlength=forest.num_trees)[tree]
    share = np.where(credit.is_scored, share, 0.0)
    of_nodes: F64
    if credit.level is Level.TRAJECTORY:
        of_nodes = subtree_sums(nodes, share * credit.values)
    elif credit.level is Level.NODE:
        of_nodes = subtree_sums(nodes, share) * credit.values
    else:
        pairs = pairs_of(forest)
        weighted = share[pairs.path] * credit.values
        of_nodes = np.bincount(pairs.node, weighted, minlength=len(nodes.parent)).astype(float)
    result = np.zeros(forest.num_tokens)
    length = (nodes.end - nodes.start).astype(np.int64)
    first = np.repeat(nodes.token_start - (np.cumsum(length) - length), length)
    result[first + np.arange(length.sum())] = np.repeat(of_nodes * credit.weights, length)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How good an estimate of the gradient is.

    Presets give the gradient in units of their own, so it is fitted first: c g is the multiple of
    the exact gradient g that is nearest to the estimate's mean.

    Attributes:
        scale: c; 1 means that the estimate has the exact length.
        bias: |mean - c g| / |c g|, the part of the mean that points elsewhere.
        bias_low: Lower end of its 95 % interval.
        bias_high: Upper end.
        variance: Trace of the covariance of one batch over |c g|^2.
        num_tokens: Sampled tokens of a batch.
    """

    scale: float
    bias: float
    bias_low: float
    bias_high: float
    variance: float
    num_tokens: float

    @property
    def cost(self) -> float:
        """Sampled tokens for a signal as strong as its noise: variance * num_tokens."""
        return self.variance * self.num_tokens


def quality(estimates: F64, truth: F64, num_tokens: float) -> Quality:
    """Compare estimates of batches with the exact gradient.

    The squared bias is a mean over pairs of different batches, so noise does not add to it; its
    interval comes from leaving out one group of batches at a time.

    Args:
        estimates: f64[B, n], B at least 2 * `NUM_GROUPS`.
        truth: f64[n].
        num_tokens: Sampled tokens of a batch.
    """
    group = np.arange(len(estimates)) % NUM_GROUPS
    sums = np.stack([estimates[group == g].sum(0) for g in range(NUM_GROUPS)])
    squares = np.array([(estimates[group == g] ** 2).sum() for g in range(NUM_GROUPS)])
    counts = np.bincount(group)
    total, square, count = sums.sum(0), squares.sum(), len(estimates)
    scale, squared, variance = _moments(total, square, count, truth)
    left_out = np.array(
        [
            _moments(total - s, square - q, count - n, truth)[1]
            for s, q, n in zip(sums, squares, counts, strict=True)
        ]
    )
    spread = (NUM_GROUPS - 1) * left_out.var()
    half = _Z * np.sqrt(spread)
    low, middle, high = np.sqrt(np.maximum([squared - half, squared, squared + half], 0.0))
    return Quality(
        scale=scale,
        bias=float(middle),
        bias_low=float(low),
        bias_high=float(high),
        variance=variance,
        num_tokens=num_tokens,
    )


def _moments(total: F64, square: float, count: int, truth: F64) -> tuple[float, float, float]:
    """Return scale, squared relative bias and relative variance from sums over batches."""
    length = float(truth @ truth)
    mean = total / count
    scale = float(mean @ truth) / length
    fitted = scale**2 * length
    # Over pairs: (|sum|^2 - sum of squares) / (n (n - 1)) estimates the square of the mean.
    square_of_mean = (float(total @ total) - square) / (count * (count - 1))
    variance = (square - float(total @ total) / count) / (count - 1)
    if fitted == 0:
        return scale, np.nan, np.nan  # The preset says nothing about these trees.
    # The fit takes the part along the truth out; its own noise is one direction of many.
    return scale, (square_of_mean - fitted) / fitted, variance / fitted
