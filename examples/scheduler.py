"""An engine with a paged key-value cache under the scheduler: `python examples/scheduler.py`.

The model is one layer of attention with random weights, in numpy alone. The engine does what each
plan says; at the end every path is computed again without a cache.
"""

import numpy as np

from treepo.core import PlanBuffers, PlanSizes, Scheduler, SearchConfig
from treepo.forest import Forest, TokenKind

VOCAB, DIM, MAX_LEN, EOS = 12, 16, 40, 0
NUM_BLOCKS, BLOCK_SIZE, MAX_ROWS = 16, 4, 6

rng = np.random.default_rng(0)
EMBED, PLACE = rng.normal(size=(VOCAB, DIM)), rng.normal(size=(MAX_LEN, DIM))
WQ, WK, WV, WO = rng.normal(size=(4, DIM, DIM)) / DIM**0.5


def attend(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One query over keys and values of its prefix, its own included: log-probs [VOCAB]."""
    scores = keys @ (query @ WQ) / DIM**0.5
    weights = np.exp(scores - scores.max())
    logits = (query + weights @ values / weights.sum() @ WO) @ EMBED.T / DIM**0.5
    return logits - np.log(np.exp(logits).sum())


class Engine:
    """Keys and values in blocks, and a block table a row."""

    def __init__(self) -> None:
        self.keys = np.zeros((NUM_BLOCKS * BLOCK_SIZE, DIM))
        self.values = np.zeros((NUM_BLOCKS * BLOCK_SIZE, DIM))
        self.tables = np.zeros((MAX_ROWS, NUM_BLOCKS), np.int64)

    def step(self, plan: PlanBuffers, sizes: PlanSizes):
        """Executes one plan in the order that it asks for; returns what it sampled."""
        for row, index, block in plan.table_updates[: sizes.num_table_updates]:
            self.tables[row, index] = block
        for cache in (self.keys, self.values):
            blocks = cache.reshape(NUM_BLOCKS, BLOCK_SIZE, DIM)
            old = blocks.copy()  # every source is read before any destination is written
            for source, destination, num_slots in plan.copies[: sizes.num_copies]:
                blocks[destination, :num_slots] = old[source, :num_slots]
        tokens = slice(sizes.num_tokens)
        hidden = EMBED[plan.token_ids[tokens]] + PLACE[plan.positions[tokens]]
        self.keys[plan.slot_mapping[tokens]] = hidden @ WK  # all writes come before the first read
        self.values[plan.slot_mapping[tokens]] = hidden @ WV
        sampled = []
        for i, uniform in zip(plan.sample_index[: sizes.num_samples], plan.uniforms, strict=False):
            row = np.searchsorted(plan.query_starts[: sizes.num_rows], i, side="right") - 1
            positions = np.arange(plan.kv_lens[row])
            blocks = self.tables[plan.row_ids[row], positions // BLOCK_SIZE]
            slots = blocks * BLOCK_SIZE + positions % BLOCK_SIZE
            logp = attend(hidden[i], self.keys[slots], self.values[slots])
            token = min(int(np.searchsorted(np.exp(logp).cumsum(), uniform, "right")), VOCAB - 1)
            sampled.append((token, logp[token], -np.sum(np.exp(logp) * logp)))
        ids, logprobs, entropies = zip(*sampled, strict=True) if sampled else ((), (), ())
        return np.array(ids, np.uint32), np.float32(logprobs), np.float32(entropies)


def largest_error(forest: Forest) -> float:
    """Computes every path again without a cache; the largest difference of a log-prob."""
    error = 0.0
    for path in range(forest.num_paths):
        ids, index = forest.token_ids(path), forest.token_index(path)
        hidden = EMBED[ids] + PLACE[: len(ids)]
        for i in np.flatnonzero(forest.tokens.kind[index] == TokenKind.SAMPLED):
            logp = attend(hidden[i - 1], hidden[:i] @ WK, hidden[:i] @ WV)
            error = max(error, abs(logp[ids[i]] - forest.tokens.logprob[index[i]]))
    return error


if __name__ == "__main__":
    config = SearchConfig(width=6, segment_len=3, max_depth=5, eos_token_ids=[EOS])
    limits = {"num_blocks": NUM_BLOCKS, "block_size": BLOCK_SIZE, "max_num_seqs": MAX_ROWS}
    scheduler, engine = Scheduler(config, max_num_batched_tokens=16, **limits), Engine()
    for key, last in enumerate([3, 4, 4]):
        scheduler.add_tree(key, np.array([1, 2, 3, 4, 5, 6, 7, last], np.uint32))
    plan = PlanBuffers(scheduler)
    while (sizes := plan.plan(scheduler)).num_rows:
        scheduler.commit_step(*engine.step(plan, sizes))
    forest = Forest(scheduler.forest())
    for path, (tree, at) in enumerate(zip(forest.paths.tree, forest.paths.at, strict=True)):
        print(f"tree {tree} {'   ' * at}" + "".join(f"{i:3}" for i in forest.token_ids(path)[at:]))
    print(*(f"{name} {count}" for name, count in scheduler.stats().items() if count), sep=", ")
    print(f"{forest.num_paths} paths agree with their recomputation to {largest_error(forest):.0e}")
