"""Sample forests from a Hugging Face causal LM over a paged KV pool."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from treepo import core
from treepo.config import EngineConfig, SamplingParams, SearchConfig, StopConfig, Verdicts
from treepo.engine.attention import (
    AttentionBackend,
    NativeBackend,
    make_backend,
)
from treepo.engine.exact import ExactForward
from treepo.engine.fused import Fusion
from treepo.engine.hook import KVShapes, probe, unhooked_if_refused
from treepo.engine.kv import KVPool, choose_num_blocks
from treepo.engine.load import load_model
from treepo.engine.open_rollout import OpenRollout
from treepo.engine.order import check_order
from treepo.engine.policy import SamplingPolicy
from treepo.engine.run import Run
from treepo.engine.stats import EngineStats
from treepo.engine.support import check_rope
from treepo.engine.texts import special_ids, token_texts
from treepo.engine.verdicts import Judge
from treepo.errors import (
    InvalidConfigError,
    InvalidInputError,
    NotFiniteError,
    PromptTooLongError,
)
from treepo.forest import Forest
from treepo.prompts import Prompt, encode, eos_token_ids

OnStep = Callable[[EngineStats], None]


class Engine:
    """A model, a KV pool and the loop that grows forests.

    Attributes:
        model: The Hugging Face model; shared with whoever trains it, never copied.
        tokenizer: Its tokenizer.
        config: Device, memory and batch limits.
        shapes: What the one-token probe found about each attention layer.
        eos_token_ids: Tokens that end a completion.
        max_model_len: Tokens that a path holds at most, prompt included.
        policy_version: Recorded with each token; `weights_changed` raises it.
        policy: The model as it samples.
        backend: Attention over the pool.
        stats: Counts of the latest rollout.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, config: EngineConfig | None = None
    ) -> None:
        """Install the attention hook on `model` and probe it; the pool is made when needed.

        Args:
            model: A causal LM on its device; `config.device` and `config.dtype` are not applied.
            tokenizer: Its tokenizer; None if every prompt is given as token ids.
            config: Memory and batch limits.

        Raises:
            UnsupportedModelError: If the engine cannot run this class of model, or the processor
                is slow in its number format.
            InvalidConfigError: If `config.max_model_len` is above the model's context, or above
                what its rotary embeddings allow.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.config = EngineConfig() if config is None else config
        with unhooked_if_refused(model):
            self.shapes = probe(model)
            check_order(model)
            self.policy = SamplingPolicy(model, self.config)
            self.shapes = _kv_shapes(self.shapes, self.policy, self.config)
            self.eos_token_ids = eos_token_ids(model, tokenizer)
            self.max_model_len = _max_model_len(model, self.config)
            check_rope(model.config, self.max_model_len)
            self.backend = self._make_backend()
        self.policy_version = 0
        self.stats = EngineStats()
        self._pool: KVPool | None = None
        self._chosen_blocks: tuple[EngineConfig, int] | None = None
        self._weights_are_new = False
        self._texts: list[bytes] | None = None
        self._is_running = False

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path, config: EngineConfig | None = None, **overrides: Any
    ) -> Self:
        """Load a model and make an engine for it.

        Args:
            path_or_id: A Hugging Face folder, or a name on the hub.
            config: Engine settings; the defaults if absent.
            **overrides: Fields of `EngineConfig` that replace those of `config`.

        Raises:
            CheckpointError: If there is no readable model.
            UnsupportedModelError: If the engine cannot run this class of model.
        """
        config = dataclasses.replace(config or EngineConfig(), **overrides)
        model, tokenizer = load_model(path_or_id, config)
        return cls(model, tokenizer, config)

    def rollout(
        self,
        prompts: Sequence[Prompt],
        search: SearchConfig,
        sampling: SamplingParams | None = None,
        seed: int = 0,
        keys: Sequence[int] | None = None,
        on_step: OnStep | None = None,
        *,
        judge: Judge | None = None,
        progress: float = 0.0,
    ) -> Forest:
        """Grow one tree of answers for each prompt.

        Args:
            prompts: Texts, message lists or arrays of token ids.
            search: How a tree branches and when it ends.
            sampling: Temperature, top-k and top-p of every token.
            seed: With a tree's key, decides every random draw of that tree.
            keys: One key a tree; the prompt's index if absent. A tree is the same in any batch.
            on_step: Called with the statistics after every step.
            judge: Called between steps with (tree index, token ids of the whole path) for each
                segment that has ended, if `search.verdicts` is segments; says whether the path
                goes on.
            progress: How far the training is, from 0 to 1, for `search.branch.schedule`.

        Returns:
            The forest; tree i belongs to prompt i.

        Raises:
            InvalidInputError: If a prompt or key cannot be used, `on_step` starts a rollout of
                this engine within its own, or the judge returns no verdict.
            InvalidConfigError: If the search asks for verdicts and there is no judge, or for the
                texts of tokens and there is no tokenizer.
            PromptTooLongError: If a prompt leaves no room for a token in the context.
            PoolTooSmallError: If the KV pool cannot hold one path.
            NotFiniteError: If the model returns NaN or infinite logits.
        """
        began = time.perf_counter()
        self.require_idle()
        _check_judge(search, judge)
        encoded = self.encode(prompts)
        keys = range(len(encoded)) if keys is None else keys
        if len(keys) != len(encoded):
            raise InvalidInputError(f"{len(encoded)} prompts have {len(keys)} keys; give one each")
        pool = self.acquire()
        scheduler = self.scheduler(search, pool, seed=seed, progress=progress)
        for key, prompt in zip(keys, encoded, strict=True):
            scheduler.add_tree(key, prompt)
        self.stats = EngineStats(num_trees=len(encoded))
        run = Run(self, scheduler, pool, sampling or SamplingParams(), judge, began)
        self.steps(run, on_step)
        return Forest(scheduler.forest())

    def open_rollout(
        self,
        search: SearchConfig,
        sampling: SamplingParams | None = None,
        seed: int = 0,
        *,
        saved: bytes | None = None,
    ) -> OpenRollout:
        """Return a rollout whose trees may stay unfinished while the weights change.

        Args:
            search: As in `rollout`, without verdicts.
            sampling: As in `rollout`.
            seed: As in `rollout`.
            saved: What `OpenRollout.to_bytes` returned, to go on from there.

        Raises:
            InvalidConfigError: If the search waits for verdicts.
            InvalidInputError: If `saved` is damaged, or of another search, sampling or limits.
        """
        _check_judge(search, None)
        return OpenRollout(self, search, sampling or SamplingParams(), seed, saved)

    def require_idle(self) -> None:
        """Refuse a rollout within another one's callback.

        Raises:
            InvalidInputError: If a rollout of this engine is running.
        """
        if self._is_running:
            raise InvalidInputError(
                "a rollout of this engine is running and uses its KV pool; make another engine "
                "on the same model"
            )

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int = 1,
        max_tokens: int = 64,
        sampling: SamplingParams | None = None,
        seed: int = 0,
        keys: Sequence[int] | None = None,
        on_step: OnStep | None = None,
        *,
        stop: StopConfig | None = None,
    ) -> Forest:
        """Sample `n` independent completions of each prompt: all forks are at the prompt.

        Args:
            prompts: Texts, message lists or arrays of token ids.
            n: Completions of each prompt.
            max_tokens: Tokens of a completion at most.
            sampling: As in `rollout`.
            seed: As in `rollout`.
            keys: As in `rollout`.
            on_step: As in `rollout`.
            stop: What ends a completion besides its length and an end of sequence.

        Returns:
            The forest; raises as `rollout` does.
        """
        search = SearchConfig.flat(n, max_tokens, stop)
        return self.rollout(prompts, search, sampling, seed, keys, on_step)

    def weights_changed(self) -> None:
        """Say that the model's weights are new: later tokens carry the next policy version.

        The next rollout takes them over wherever copies of them are kept. It also does without
        this call where it notices the change by a tensor's version; what is written through `.data`
        or by a fused optimizer it does not.
        """
        self.policy_version += 1
        self._weights_are_new = True

    @property
    def fusions(self) -> tuple[Fusion, ...]:
        """What is computed faster than by the model's own modules."""
        return self.policy.fusions

    @property
    def exact_forward(self) -> ExactForward | None:
        """Lets training compute the very bits of sampling, so that on-policy ratios are exactly 1.

        None where sampling computes with another copy of the model or of the keys and values, in
        another number format, or by code without a gradient of its own: not on a CPU, or with
        `attention` torch, or `packing` never.
        """
        is_same = self.shapes.dtype == self.model.dtype
        if not is_same or self.backend.name != NativeBackend.name:
            return None
        return self.policy.exact_forward

    def acquire(self) -> KVPool:
        """Return the KV pool; make it if it was released or never made.

        The back end is renewed where the weights are new: it may keep attention sinks, which are
        weights.
        """
        if self._weights_are_new:
            self.backend = self._make_backend()
        if self._pool is None:
            device = self.model.device
            # Once chosen it stays as long as the config: open rollouts are planned for it, and what
            # is free later is less, as torch keeps what the pool gave back.
            if self._chosen_blocks is None or self._chosen_blocks[0] != self.config:
                self._chosen_blocks = (
                    self.config,
                    choose_num_blocks(
                        self.config,
                        self.shapes,
                        max_model_len=self.max_model_len,
                        device=device,
                        layout=self.backend.layout,
                    ),
                )
            self._pool = KVPool(
                self.shapes,
                num_blocks=self._chosen_blocks[1],
                block_size=self.config.block_size,
                device=device,
                layout=self.backend.layout,
            )
        return self._pool

    def release(self) -> None:
        """Free the KV pool, for instance while training; the next rollout makes one as large."""
        self._pool = None
        self.backend = self._make_backend()

    def _make_backend(self) -> AttentionBackend:
        return make_backend(
            self.config.attention, self.shapes, self.policy.kernels, self.model.device
        )

    def token_texts(self) -> list[bytes]:
        """Return the bytes of every token id, worked out once; see `treepo.engine.texts`.

        Raises:
            InvalidConfigError: If the engine has no tokenizer.
        """
        if self.tokenizer is None:
            raise InvalidConfigError(
                "search.stop has a rule about text and the engine has no tokenizer; give it one, "
                "or leave stop.strings, stop.boxed and stop.repetition=bytes alone"
            )
        if self._texts is None:
            self._texts = token_texts(self.tokenizer)
        return self._texts

    def _end_ids(self, search: SearchConfig) -> tuple[int, ...]:
        """Return the tokens that end a completion, with stop strings that are special tokens."""
        if not search.stop.strings or self.tokenizer is None:
            return self.eos_token_ids
        named = special_ids(self.tokenizer, search.stop.strings)
        return tuple(sorted({*self.eos_token_ids, *named}))

    def scheduler(
        self, search: SearchConfig, pool: KVPool, *, seed: int, progress: float
    ) -> core.Scheduler:
        """Return a scheduler without trees for this pool."""
        config = self.config
        scheduler = core.Scheduler(
            search.to_core(self._end_ids(search), self.max_model_len, progress=progress),
            seed=seed,
            num_blocks=pool.num_blocks,
            block_size=pool.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            admission_percent=config.admission_percent,
            age_bias=config.age_bias,
            policy_version=self.policy_version,
        )
        if search.needs_texts:
            scheduler.set_texts(self.token_texts())
        return scheduler

    def steps(
        self, run: Run, on_step: OnStep | None, is_enough: Callable[[], bool] = lambda: False
    ) -> None:
        """Run steps of a rollout until nothing is left to do, or it is enough."""
        self.policy.follow(force=self._weights_are_new)
        self._weights_are_new = False
        self._is_running = True
        try:
            with self.policy.running():
                while not is_enough() and run.step():
                    if on_step is not None:
                        on_step(self.stats)
        except NotFiniteError:
            self.release()  # What the model wrote may be NaN too, and would spoil later rollouts.
            raise
        finally:
            self._is_running = False

    def encode(self, prompts: Sequence[Prompt]) -> list[npt.NDArray[np.uint32]]:
        """Return the token ids of prompts; raises as `rollout` does."""
        if isinstance(prompts, str):
            raise InvalidInputError(f"prompts is the text {prompts!r:.60}; put it in a list")
        return [self.token_ids(prompt, f"prompt {index}") for index, prompt in enumerate(prompts)]

    def token_ids(self, prompt: Prompt, name: str = "the prompt") -> npt.NDArray[np.uint32]:
        """Return the token ids of one prompt.

        Args:
            prompt: Text, messages or token ids.
            name: What the prompt is called in errors.

        Raises:
            InvalidInputError: It cannot be encoded, or holds a token that the model lacks.
            PromptTooLongError: It leaves no room for a token in the context.
        """
        token_ids = encode(self.tokenizer, prompt)
        vocab_size = self.model.config.get_text_config(decoder=True).vocab_size
        if len(token_ids) >= self.max_model_len:
            raise PromptTooLongError(
                f"{name} has {len(token_ids)} tokens and the context holds "
                f"{self.max_model_len}; shorten the prompt to at most {self.max_model_len - 1}"
            )
        if int(token_ids.max()) >= vocab_size:
            raise InvalidInputError(
                f"{name} holds token {token_ids.max()}, the model knows {vocab_size}"
            )
        return token_ids


def _kv_shapes(shapes: KVShapes, policy: SamplingPolicy, config: EngineConfig) -> KVShapes:
    """Return the shapes of the pool, in the number format that the config asks for."""
    dtype = policy.model.dtype
    if config.kv_dtype is not None:
        dtype = getattr(torch, config.kv_dtype.value)
    return dataclasses.replace(shapes, dtype=dtype)


def _check_judge(search: SearchConfig, judge: Judge | None) -> None:
    """Refuse a search that waits for verdicts without a judge, and a judge that nobody asks."""
    is_asked = search.verdicts is Verdicts.SEGMENTS
    if is_asked and judge is None:
        raise InvalidConfigError(
            "search.verdicts is segments and there is no judge; give rollout a judge, or set "
            "search.verdicts to nothing"
        )
    if judge is not None and not is_asked:
        raise InvalidConfigError(
            "there is a judge and search.verdicts is nothing; set search.verdicts to segments"
        )


def _max_model_len(model: PreTrainedModel, config: EngineConfig) -> int:
    """Return the config's context length, or the model's own, which is the most it can be."""
    own = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    wanted = own if config.max_model_len is None else config.max_model_len
    if wanted is None:
        raise InvalidInputError(
            f"{type(model).__name__} does not say how long its context is; set max_model_len"
        )
    if own is not None and wanted > own:
        raise InvalidConfigError(
            f"max_model_len = {wanted} is above the {own} tokens that {type(model).__name__} has "
            "positions for; lower it"
        )
    return int(wanted)
