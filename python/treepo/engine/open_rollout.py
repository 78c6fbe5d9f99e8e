"""A rollout whose trees may stay unfinished while the weights change."""

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from treepo import core
from treepo.config import SamplingParams, SearchConfig
from treepo.engine.run import Run
from treepo.engine.stats import EngineStats
from treepo.errors import InvalidInputError
from treepo.forest import Forest
from treepo.prompts import Prompt

if TYPE_CHECKING:
    from treepo.engine.engine import Engine

_HEADER = struct.Struct("<QQQ")
"""Blocks that plans are made for, trees and open trees, before the scheduler's bytes."""


class OpenRollout:
    """Trees that grow in several calls, each under the weights of its time.

    A long answer does not hold up a step of training: the step takes the trees that are done, and
    the others go on under the next weights. Each token records the version of the weights that
    sampled it. Keys and values are computed again at each call, with the weights of that call. Made
    by `Engine.open_rollout`.

    Attributes:
        num_trees: Trees added, those that are done included; all are in memory.
        num_open: Trees that `run` has not returned.
    """

    def __init__(
        self,
        engine: "Engine",
        search: SearchConfig,
        sampling: SamplingParams,
        seed: int,
        saved: bytes | None,
    ) -> None:
        """Takes the parts; see `Engine.open_rollout`."""
        self._engine = engine
        self._sampling = sampling
        self._num_blocks = engine.acquire().num_blocks
        self.num_trees = 0
        self.num_open = 0
        if saved is None:
            pool = engine.acquire()
            self._scheduler = engine.scheduler(search, pool, seed=seed, progress=0.0)
            return
        if len(saved) < _HEADER.size:
            raise InvalidInputError(f"the saved trees are cut short: {len(saved)} bytes")
        header = _HEADER.unpack(saved[: _HEADER.size])
        self._num_blocks, self.num_trees, self.num_open = header
        self._scheduler = core.Scheduler.from_bytes(saved[_HEADER.size :])
        self._require_blocks()

    def add(self, prompts: Sequence[Prompt], keys: Sequence[int]) -> None:
        """Queue trees.

        Args:
            prompts: As in `Engine.rollout`.
            keys: One a tree, each once in this rollout.

        Raises:
            InvalidInputError: If there is not one key a prompt, or a prompt cannot be used.
            PromptTooLongError: If a prompt leaves no room for a token in the context.
        """
        encoded = self._engine.encode(prompts)
        if len(keys) != len(encoded):
            raise InvalidInputError(f"{len(encoded)} prompts have {len(keys)} keys; give one each")
        for key, prompt in zip(keys, encoded, strict=True):
            self._scheduler.add_tree(key, prompt)
        self.num_trees += len(encoded)
        self.num_open += len(encoded)

    def run(self, num_trees: int, on_step: Callable[[EngineStats], None] | None = None) -> Forest:
        """Grow trees under the present weights until some are done.

        Args:
            num_trees: Trees that are waited for; fewer if fewer are open, more if several end in
                the same step.
            on_step: Called with the statistics after every step; may raise to give up, which
                loses no token.

        Returns:
            The trees that are done and were not returned before, in the order they were added.

        Raises:
            PoolTooSmallError: If the KV pool cannot hold one path.
            NotFiniteError: If the model returns NaN or infinite logits.
        """
        engine = self._engine
        engine.require_idle()
        self._require_blocks()
        pool = engine.acquire()
        # Whatever used the pool since, and whatever weights wrote it, nothing in it is ours. From
        # its own bytes a scheduler goes on as one does that a resumed run has read.
        scheduler = self._scheduler = core.Scheduler.from_bytes(self._scheduler.to_bytes())
        scheduler.set_policy_version(engine.policy_version)
        engine.stats = EngineStats(num_trees=num_trees)
        run = Run(engine, scheduler, pool, self._sampling)
        run.finished += scheduler.take_finished()
        engine.steps(run, on_step, lambda: len(run.finished) >= num_trees)
        self.num_open -= len(run.finished)
        done = np.array(sorted(run.finished), dtype=np.int64)
        return Forest(scheduler.forest()).select(done)

    @property
    def is_done(self) -> bool:
        """Whether no tree is open."""
        return self._scheduler.is_done()

    def to_bytes(self) -> bytes:
        """Return the trees as bytes, for `Engine.open_rollout`, in any process."""
        header = _HEADER.pack(self._num_blocks, self.num_trees, self.num_open)
        return header + self._scheduler.to_bytes()

    def _require_blocks(self) -> None:
        """Refuse a pool that is smaller than the one that plans are made for."""
        present = self._engine.acquire().num_blocks
        if present < self._num_blocks:
            raise InvalidInputError(
                f"the unfinished trees were planned for {self._num_blocks} KV blocks and the pool "
                f"has {present}; set engine.num_blocks to at least {self._num_blocks}"
            )
