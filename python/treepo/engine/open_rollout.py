"""A rollout whose trees may stay unfinished while the weights change."""

import json
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from treepo import core
from treepo.config import SamplingParams, SearchConfig
from treepo.config.schema import flat
from treepo.engine.run import Run
from treepo.engine.stats import EngineStats
from treepo.errors import InvalidInputError
from treepo.forest import Forest
from treepo.prompts import Prompt

if TYPE_CHECKING:
    from treepo.engine.engine import Engine

_HEADER = struct.Struct("<Q")
"""Bytes of the JSON that comes before the scheduler's bytes."""

_NUM_BLOCKS = "engine.num_blocks"


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
        self._made_for = _limits(engine, search, sampling)
        self._finished: list[int] = []
        self.num_trees = 0
        self.num_open = 0
        if saved is None:
            pool = engine.acquire()
            self._scheduler = engine.scheduler(search, pool, seed=seed, progress=0.0)
            return
        head, trees = _split(saved)
        self._require_same(head["made_for"])
        self._made_for = head["made_for"]
        self._finished += head["finished"]
        self.num_trees, self.num_open = head["num_trees"], head["num_open"]
        self._scheduler = core.Scheduler.from_bytes(trees)
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
            on_step: Called with the statistics after every step; may raise to give up. Whatever is
                raised in a step, no token of those before it is lost.

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
        # The same list: what is done stays known where `on_step` gives up.
        run.finished = self._finished
        run.finished += scheduler.take_finished()
        try:
            engine.steps(run, on_step, lambda: len(run.finished) >= num_trees)
        except BaseException:
            scheduler.drop_memory()  # The plan of a step that failed; its tokens are sampled again.
            raise
        self.num_open -= len(run.finished)
        done = np.array(sorted(run.finished), dtype=np.int64)
        run.finished.clear()
        return Forest(scheduler.forest()).select(done)

    @property
    def is_done(self) -> bool:
        """Whether no tree is open, or done and not returned."""
        return self.num_open == 0

    def to_bytes(self) -> bytes:
        """Return the trees as bytes, for `Engine.open_rollout`, in any process."""
        head = {
            "made_for": self._made_for,
            "finished": self._finished,
            "num_trees": self.num_trees,
            "num_open": self.num_open,
        }
        text = json.dumps(head).encode()
        return _HEADER.pack(len(text)) + text + self._scheduler.to_bytes()

    def _require_same(self, made_for: dict[str, Any]) -> None:
        """Refuse another search and limits under which slots or rows would be others."""
        for name, value in self._made_for.items():
            if name != _NUM_BLOCKS and made_for.get(name) != value:
                raise InvalidInputError(
                    f"the unfinished trees were made with {name} = {made_for.get(name)}, and it "
                    f"is {value} now; leave it as it was"
                )

    def _require_blocks(self) -> None:
        """Refuse a pool that is smaller than the one that plans are made for."""
        present, needed = self._engine.acquire().num_blocks, self._made_for[_NUM_BLOCKS]
        if present < needed:
            raise InvalidInputError(
                f"the unfinished trees were planned for {needed} KV blocks and the pool "
                f"has {present}; set engine.num_blocks to at least {needed}"
            )


def _limits(engine: "Engine", search: SearchConfig, sampling: SamplingParams) -> dict[str, Any]:
    """Return what a scheduler's bytes hold and an engine must agree with, by config key."""
    limits = {
        **flat(search.to_dict(), "search."),
        **flat(sampling.to_dict(), "sampling."),
        _NUM_BLOCKS: engine.acquire().num_blocks,
        "engine.block_size": engine.config.block_size,
        "engine.max_num_seqs": engine.config.max_num_seqs,
        "engine.max_model_len": engine.max_model_len,
    }
    as_saved: dict[str, Any] = json.loads(json.dumps(limits))
    return as_saved


def _split(saved: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the head and the scheduler's bytes of `OpenRollout.to_bytes`."""
    length = _HEADER.unpack(saved[: _HEADER.size])[0] if len(saved) >= _HEADER.size else len(saved)
    end = _HEADER.size + length
    try:
        return json.loads(saved[_HEADER.size : end]), saved[end:]
    except ValueError:
        raise InvalidInputError(
            f"the saved trees are damaged or cut short: {len(saved)} bytes"
        ) from None
