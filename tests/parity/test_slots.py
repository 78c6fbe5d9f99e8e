"""Rows stay full while trees widen and drain, no token is fed twice, and nothing grows."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_models import MODELS, VOCAB_SIZE

from treepo import core
from treepo.config import EngineConfig, SearchConfig
from treepo.engine import Engine
from treepo.forest import FinishReason, Forest

NUM_ROWS = 64
SEARCH = SearchConfig(width=8, segment_len=8, max_depth=4)
# Of 211 tokens, how many end a completion: none, every seventieth, every twentieth.
NUM_EOS = [0, 3, 10]


@pytest.fixture
def schedulers(monkeypatch):
    """The schedulers that engines make, in order."""
    made, scheduler_class = [], core.Scheduler

    def make(*args, **settings):
        made.append(scheduler_class(*args, **settings))
        return made[-1]

    monkeypatch.setattr(core, "Scheduler", make)
    return made


def make_engine(num_eos=0, **limits):
    model = MODELS["llama"].make(num_hidden_layers=1)
    model.generation_config.eos_token_id = list(range(num_eos))
    return Engine(model, None, EngineConfig(block_size=4, num_blocks=8000, **limits))


def random_prompts(num_trees, num_common=0):
    """Prompts of 5 to 40 tokens of their own behind those that all have in common."""
    rng = np.random.default_rng(num_trees)
    common = rng.integers(0, VOCAB_SIZE, num_common)
    own = [rng.integers(0, VOCAB_SIZE, rng.integers(5, 41)) for _ in range(num_trees)]
    return [np.concatenate([common, tokens]).astype(np.uint32) for tokens in own]


@pytest.mark.parametrize("num_eos", NUM_EOS)
@pytest.mark.parametrize("num_trees", [32, 64])
def test_rounds_keep_at_most_2_percent_of_the_rows_waiting(num_trees, num_eos):
    engine = make_engine(num_eos, max_num_seqs=NUM_ROWS)
    engine.rollout(random_prompts(num_trees), SEARCH)
    stats = engine.stats
    assert stats.row_steps == stats.steps * NUM_ROWS
    assert stats.round_wait_row_steps <= 0.02 * stats.row_steps


class RowLog:
    """Idle rows by their cause; given to a rollout as `on_step`.

    Attributes:
        before_drain: Rows that were idle while a tree had not begun.
        unexplained: Rows that were idle though a path could have had them.
        in_drain: Rows that were idle when every tree had begun.
    """

    def __init__(self, schedulers):
        self._schedulers = schedulers
        self._idle = self._waiting = 0
        self._num_live = NUM_ROWS
        self.before_drain = self.unexplained = self.in_drain = 0

    def __call__(self, stats):
        idle = stats.idle_row_steps - self._idle
        waiting = stats.round_wait_row_steps - self._waiting
        self._idle, self._waiting = stats.idle_row_steps, stats.round_wait_row_steps
        forest = Forest(self._schedulers[-1].forest())
        if num_begun(forest) == forest.num_trees:
            self.in_drain += idle
        else:
            self.before_drain += idle
        # No path lives that could take a row, or its round goes on.
        self.unexplained += max(0, idle - waiting - max(0, NUM_ROWS - self._num_live))
        self._num_live = int((forest.paths.finish == FinishReason.NONE).sum())


def num_begun(forest):
    """Trees that have sampled a token."""
    owner = np.repeat(np.arange(forest.num_paths), np.diff(forest.paths.token_start))
    return len(np.unique(forest.paths.tree[owner[np.isfinite(forest.tokens.logprob)]]))


@pytest.mark.parametrize("num_eos", NUM_EOS)
@pytest.mark.parametrize("num_trees", [48, 64])
def test_rows_are_idle_only_when_no_tree_is_left_to_begin(schedulers, num_trees, num_eos):
    engine, log = make_engine(num_eos, max_num_seqs=NUM_ROWS), RowLog(schedulers)
    engine.rollout(random_prompts(num_trees), SEARCH, on_step=log)
    assert (log.before_drain, log.unexplained) == (0, 0)
    assert log.in_drain == engine.stats.idle_row_steps > 0


def test_rows_that_are_idle_early_are_noticed(schedulers):
    # Trees are let in one at a time, and one fills no 64 rows.
    engine = make_engine(max_num_seqs=NUM_ROWS, admission_percent=1)
    log = RowLog(schedulers)
    engine.rollout(random_prompts(4), SEARCH, on_step=log)
    assert log.before_drain > 0


def num_never_fed(forest):
    """Last tokens of paths that nobody continued: they were sampled and never run."""
    parents, ats = forest.paths.parent, forest.paths.at
    continued = {(int(p), int(at)) for p, at in zip(parents, ats, strict=True)}
    ends = enumerate(forest.paths.length.tolist())
    is_sampled = np.isfinite(forest.tokens.logprob[forest.paths.token_start[1:] - 1])
    return sum(
        end not in continued for end, sampled in zip(ends, is_sampled, strict=True) if sampled
    )


@pytest.mark.parametrize("num_eos", NUM_EOS)
@pytest.mark.parametrize("num_rows", [5, NUM_ROWS, 1000])
def test_every_token_is_fed_once_in_ample_memory(schedulers, num_rows, num_eos):
    engine = make_engine(num_eos, max_num_seqs=num_rows, max_num_batched_tokens=50)
    forest = engine.rollout(random_prompts(20, num_common=9), SEARCH)
    stats, refed = engine.stats, schedulers[0].stats()["refed_tokens"]
    assert stats.recomputed_tokens == stats.evictions == 0
    assert stats.shared_prefix_tokens > 0
    prompt_tokens = int(forest.trees.prompt_len.sum())
    assert prompt_tokens + stats.decoded_tokens == forest.num_tokens
    fed_once = prompt_tokens - stats.shared_prefix_tokens
    fed_once += stats.decoded_tokens - num_never_fed(forest)
    # A fork that begins behind its row's step feeds one token again to have its logits.
    assert stats.fed_tokens == fed_once + refed
    assert refed <= (forest.paths.parent >= 0).sum()


def test_no_token_at_all_is_fed_twice_where_every_fork_finds_a_row(schedulers):
    engine = make_engine(max_num_seqs=1000)
    forest = engine.rollout(random_prompts(20), SEARCH.replace(fallback="none"))
    assert engine.stats.fed_tokens == forest.num_tokens - num_never_fed(forest)


def resident_bytes():
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def pool_bytes(engine):
    pool, layers = engine.acquire(), range(len(engine.shapes.layers))
    return sum(tensor.nbytes for layer in layers for tensor in pool.layer(layer))


def test_200_rollouts_do_not_grow():
    engine = make_engine(num_eos=10, max_num_seqs=16, max_num_batched_tokens=64)
    prompts, search = random_prompts(2), SearchConfig(width=4, segment_len=6, max_depth=2)
    seeds = iter(range(1000))
    sizes = []
    for num_rollouts in (30, 200):
        for _ in range(num_rollouts):
            engine.rollout(prompts, search, seed=next(seeds))
        gc.collect()
        sizes.append((resident_bytes(), pool_bytes(engine)))
    (resident, pool), (resident_after, pool_after) = sizes
    assert resident_after - resident < 2 << 20
    assert pool_after == pool
