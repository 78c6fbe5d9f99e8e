"""Typed view of the extension module; the Rust crate `treepo` does the work.

Every argument is checked: what does not fit raises one of the exceptions below and changes
nothing. Tree and path indices, positions and counts are integers from 0 on; arrays are contiguous
and of exactly the dtype that is named. Log-probabilities and entropies are in nats.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, TypeVar, final

import numpy as np
import numpy.typing as npt

_I32 = npt.NDArray[np.int32]
_U32 = npt.NDArray[np.uint32]
_F32 = npt.NDArray[np.float32]
_I64 = npt.NDArray[np.int64]
_F64 = npt.NDArray[np.float64]

_T = TypeVar("_T")

_Heads = tuple[int, int, int]
"""Address, elements from token to token, elements from head to head."""
_Rows = tuple[int, int]
"""Address, elements from row to row."""

_Verdict = Literal["continue", "stop", "prune"]

__all__ = [
    "Activation",
    "AttentionLayer",
    "AttentionStep",
    "BlockPool",
    "BufferTooSmallError",
    "Element",
    "Forest",
    "InvalidConfigError",
    "InvalidInputError",
    "Kernels",
    "LawBrokenError",
    "NotFiniteError",
    "PoolTooSmallError",
    "PromptTooLongError",
    "Scheduler",
    "Search",
    "SearchConfig",
    "TreepoError",
    "__version__",
    "forecast",
]

__version__: Final[str]

def forecast(
    config: SearchConfig,
    *,
    rates: Sequence[float],
    prompt_len: int = 64,
    num_trees: int = 64,
    num_blocks: int | None = None,
    block_size: int = 16,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 2048,
    admission_percent: int = 200,
    age_bias: int = 32,
    seed: int = 0,
) -> dict[str, float]:
    """What a configuration will cost, before anything runs: means a tree, and totals.

    The trees are grown by the real search and scheduler over a model that only knows how often
    paths end.

    Args:
        config: the search.
        rates: probability that a path ends within its next segment, by the number of segments
            that it has; the last one holds for all deeper ones.
        prompt_len: tokens of a prompt.
        num_trees: trees that are sampled together.
        num_blocks: blocks of the pool; enough for all trees at once, or 2**21, if not given.
        block_size: tokens of a block.
        max_num_seqs: rows of a step at most.
        max_num_batched_tokens: tokens of a step at most.
        admission_percent: as of `Scheduler`.
        age_bias: as of `Scheduler`.
        seed: of the trees that are drawn.

    Returns:
        decoded_tokens (with decoded_tokens_error), returned_tokens and speedup_bound, their ratio;
        leaves and leaves_stop, leaves_length, leaves_depth, leaves_repetition, leaves_pruned;
        initial_paths, branches, fallbacks, leaf_depth, recomputed_tokens; in total steps and
        peak_blocks; rows a step, and the shares idle_rows and round_wait.

    Raises:
        InvalidConfigError: rates outside 0 to 1, or no trees.
    """

class TreepoError(Exception):
    """Base of treepo's exceptions."""

class InvalidConfigError(TreepoError, ValueError):
    """A configuration value is out of its range."""

class InvalidInputError(TreepoError, ValueError):
    """An argument does not fit the object's state."""

class PromptTooLongError(TreepoError, ValueError):
    """A prompt leaves no room for a completion."""

class PoolTooSmallError(TreepoError, MemoryError):
    """The KV pool cannot hold one path at full length."""

class NotFiniteError(TreepoError, ArithmeticError):
    """A log-probability, logit or loss is not finite."""

class BufferTooSmallError(TreepoError, ValueError):
    """A plan array is shorter than the plan may need."""

class LawBrokenError(TreepoError, AssertionError):
    """An invariant does not hold: a fault of treepo."""

@final
class SearchConfig:
    """Configuration of the search: every rule and its numbers; frozen, compared by value.

    Lengths are in tokens. The sections are dicts; fields that are absent have their defaults.
    A number that the chosen rule does not use is ignored.

    Args:
        width: leaves of a tree.
        segment_len: tokens of a segment at most.
        max_depth: segments of a path at most.
        branch_factor: children of a live path at the end of a round, before budget transfer.
        max_branch_factor: draws each round's factor of branch_factor..max_branch_factor.
        initial_divergence: paths that start at the prompt, at most `width`.
        max_initial_divergence: draws them of initial_divergence..max_initial_divergence.
        branch: how live paths share the budget: by, prefer, temperature, final_temperature,
            schedule, remainder, num_positions, copies, threshold.
        budget: how much a tree grows: transfer, total, max_tokens, min_width.
        fallback: where missing leaves come from: from, at, window, max_windows, alignment,
            refill, copies.
        stop: what ends a path: strings, boxed, repetition, repetition_len, repetition_count,
            repetition_window.
        prune: what is given up: by, window, threshold, warmup_leaves, warmup_quantile, leaves.
        verdicts: "nothing", or "segments": the caller judges each segment that does not end
            its path.
        opportunistic: "off", or "step_tokens": open trees share `step_tokens` tokens a segment.
        step_tokens: tokens a segment of the live paths of all trees.
        progress: how far the training is, 0 to 1, for `branch.schedule`.
        max_completion_len: tokens of a completion; segment_len * max_depth if not given.
        max_model_len: tokens of prompt and completion together.
        eos_token_ids: tokens that end a sequence.

    Raises:
        InvalidConfigError: an unknown name or a wrong value; the message names the field.
    """

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __new__(
        cls,
        *,
        width: int = 8,
        segment_len: int = 64,
        max_depth: int = 8,
        branch_factor: int = 2,
        max_branch_factor: int | None = None,
        initial_divergence: int = 2,
        max_initial_divergence: int | None = None,
        branch: dict[str, Any] = ...,
        budget: dict[str, Any] = ...,
        fallback: dict[str, Any] = ...,
        stop: dict[str, Any] = ...,
        prune: dict[str, Any] = ...,
        verdicts: str = "nothing",
        opportunistic: str = "off",
        step_tokens: int = 8192,
        progress: float = 0.0,
        max_completion_len: int | None = None,
        max_model_len: int = 4294967295,
        eos_token_ids: Iterable[int] = ...,
    ) -> SearchConfig: ...
    @staticmethod
    def preset(name: str) -> SearchConfig:
        """A published search, without end-of-sequence tokens.

        Change it by `SearchConfig(**SearchConfig.preset(name).to_dict() | {"width": 4})`.

        Raises:
            InvalidConfigError: naming the known ones.
        """
    @staticmethod
    def presets() -> list[tuple[str, str]]:
        """Name and source of each published search."""
    def policies(self) -> list[dict[str, str]]:
        """The rules that are switched on and decide which paths there are.

        Each has a `name` (its section), a `rule` and a `dependence`, "prefix" or "sampled_token".
        """
    def to_dict(self) -> dict[str, Any]:
        """Every field; `SearchConfig(**config.to_dict()) == config`."""
    @property
    def dependence(self) -> str:
        """The worst dependence of the policies.

        "prefix": forks look at nothing behind them. "sampled_token": they also look at sampled
        tokens behind them, which biases plain means.
        """
    @property
    def max_paths(self) -> int:
        """Paths that a tree has at most, without the caller's rewinds."""
    @property
    def width(self) -> int: ...
    @property
    def segment_len(self) -> int: ...
    @property
    def max_depth(self) -> int: ...
    @property
    def branch_factor(self) -> int: ...
    @property
    def max_branch_factor(self) -> int | None: ...
    @property
    def initial_divergence(self) -> int: ...
    @property
    def max_initial_divergence(self) -> int | None: ...
    @property
    def branch(self) -> dict[str, Any]: ...
    @property
    def budget(self) -> dict[str, Any]: ...
    @property
    def fallback(self) -> dict[str, Any]: ...
    @property
    def stop(self) -> dict[str, Any]: ...
    @property
    def prune(self) -> dict[str, Any]: ...
    @property
    def verdicts(self) -> str: ...
    @property
    def opportunistic(self) -> str: ...
    @property
    def step_tokens(self) -> int: ...
    @property
    def progress(self) -> float: ...
    @property
    def max_completion_len(self) -> int:
        """Tokens of a completion at most; what segments and depth allow at most."""
    @property
    def max_model_len(self) -> int: ...
    @property
    def eos_token_ids(self) -> list[int]: ...

@final
class Forest:
    """Trees of token paths; grown by a search or by hand through `add_tree`, `fork`, `append`."""

    def __new__(cls) -> Forest: ...
    @staticmethod
    def from_columns(columns: Mapping[str, npt.NDArray[Any]]) -> Forest:
        """The forest of these columns; the laws of the forest are checked."""
    def add_tree(self, key: int, prompt: _U32, *, seed: int = 0) -> int:
        """Adds a tree; returns its index.

        Its path 0 holds the prompt, which has at least one token.
        """
    def fork(self, tree: int, path: int, at: int) -> int:
        """Starts a path that shares `at` tokens of `path`; returns its index in the tree.

        `prompt_len <= at <= len(path)`.
        """
    def append(
        self,
        tree: int,
        path: int,
        token_ids: _U32,
        logprobs: _F32,
        entropies: _F32,
        *,
        version: int = 0,
    ) -> None:
        """Appends sampled tokens to a live path."""
    def append_given(self, tree: int, path: int, token_ids: _U32) -> None:
        """Appends tokens that were not sampled: the output of a tool, or the user's text."""
    def mark(self, tree: int, path: int) -> None:
        """Ends a segment at the path's current length."""
    def finish(self, tree: int, path: int, reason: int) -> None:
        """Makes a live path a leaf; `reason` is a treepo.forest.FinishReason."""
    def set_rewards(self, rewards: _F32) -> None:
        """One reward a path, in column order (tree-major)."""
    @property
    def num_trees(self) -> int: ...
    @property
    def num_paths(self) -> int: ...
    @property
    def num_tokens(self) -> int:
        """Unique tokens, prompts included."""
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All columns, see treepo.forest for names, dtypes and shapes. One O(tokens) pass."""
    def nodes(self) -> dict[str, _I32]:
        """Derived nodes in depth-first preorder, see treepo.forest.Nodes. One O(tokens) pass."""
    def select(self, trees: _U32) -> Forest:
        """A copy of these trees, in the given order."""
    @staticmethod
    def concatenate(forests: list[Forest]) -> Forest:
        """A copy of all trees of all forests, in order."""
    def check(self) -> None:
        """Raises with the broken law if an invariant does not hold."""

@final
class Search:
    """The tree search at segment granularity, over any function that continues tokens.

    Args:
        config: the rules.
        seed: of all random numbers.
    """

    def __new__(cls, config: SearchConfig, *, seed: int = 0) -> Search: ...
    def add_tree(self, key: int, prompt: _U32) -> int:
        """Starts a tree; `key` decides its random numbers. Returns the tree's index.

        Raises:
            InvalidInputError: an empty prompt.
            PromptTooLongError: nothing can be sampled behind it.
            InvalidConfigError: a rule about text without `set_texts`.
        """
    def segments(self) -> _I32:
        """[n, 3] tree, path and max_new_tokens of each segment that waits to be run."""
    def tokens(self, tree: int, path: int) -> _U32:
        """The whole token sequence of a path."""
    def complete_segment(
        self,
        tree: int,
        path: int,
        token_ids: _U32,
        logprobs: _F32,
        entropies: _F32,
    ) -> None:
        """Appends a segment, whole or in parts, and advances the tree.

        It ends at its limit or with its first end-of-sequence token. What follows a token that a
        stop string, a box or pruning ends the path with is dropped.

        Raises:
            InvalidInputError: the path does not run, or more tokens than the segment takes.
            NotFiniteError: a log-probability or an entropy.
        """
    def set_texts(self, texts: Iterable[bytes]) -> None:
        """Gives the rules about text the bytes of the token ids 0, 1, .. in order.

        A piece may be empty and need not be valid UTF-8. Comes before the first tree.
        """
    def ended_segments(self) -> _I32:
        """[n, 2] tree and path of each path that waits for a verdict (`verdicts="segments"`)."""
    def report(
        self,
        tree: int,
        path: int,
        verdict: _Verdict = "continue",
        *,
        score: float = 0.0,
    ) -> None:
        """Judges the segment that a path has ended; the round may end with it.

        Args:
            tree: the tree.
            path: a path of `ended_segments`.
            verdict: "continue" goes on, "stop" makes it a leaf, "prune" gives it up.
            score: finite; what `branch.by` and `prune.by` = "score" look at.

        Raises:
            InvalidInputError: the path does not wait for a verdict, or a bad score.
        """
    def fork(self, tree: int, path: int, at: int) -> int:
        """Starts a path that shares the first `at` tokens of `path`; returns its index.

        It joins the round. The tree is no longer replayable.

        Raises:
            InvalidInputError: the tree is done or has `width` leaves and live paths already, or
                nothing can be sampled at `at`.
        """
    def prune(self, tree: int, path: int) -> None:
        """Gives a live path up. The tree is no longer replayable."""
    def prune_subtree(self, tree: int, path: int, at: int) -> int:
        """Gives up every live path that shares the first `at` tokens of `path`; returns how many.

        The tree is no longer replayable if there are any.
        """
    def rewind(self, tree: int, path: int, at: int) -> int:
        """Goes back to the first `at` tokens of a live path; returns the path that starts there.

        The old path is pruned and does not count. The tree is no longer replayable.
        """
    def set_policy_version(self, version: int) -> None:
        """Sets the version of the weights, recorded for every token sampled from here on."""
    def abort_tree(self, tree: int) -> None:
        """Ends all live paths of a tree; one that is done stays as it is."""
    def awaits_verdicts(self) -> bool:
        """Whether a path waits for a verdict."""
    def complete_path(
        self,
        tree: int,
        path: int,
        token_ids: _U32,
        logprobs: _F32,
        entropies: _F32,
        reason: int,
    ) -> None:
        """Appends a running path's last tokens; it ends with them by a rule of the engine's own.

        A rule of the search that ends the path before its last token goes first.

        Args:
            tree: the tree.
            path: a path with a running segment.
            token_ids: what `complete_segment` takes; empty if the path has other tokens of its own.
            logprobs: of these.
            entropies: of these.
            reason: treepo.forest.FinishReason.STOP or LENGTH.

        Raises:
            InvalidInputError: the path cannot end here, or not so.
            NotFiniteError: a log-probability or an entropy.
        """
    def is_tree_done(self, tree: int) -> bool:
        """Whether a tree is done; False for one that does not exist."""
    def is_done(self) -> bool:
        """Whether every tree is done."""
    def to_bytes(self) -> bytes:
        """A snapshot with the half-grown forest, for `from_bytes`. O(tokens)."""
    @staticmethod
    def from_bytes(bytes: bytes) -> Search:
        """The search of a snapshot, in any process; it goes on as that one would have.

        Raises:
            InvalidInputError: the bytes are damaged, cut short, or of another kind or version.
        """
    def forest(self, trees: _U32 | None = None) -> Forest:
        """A copy of the forest as it is, or of these trees of it, in the given order."""
    def check(self) -> None:
        """Raises LawBrokenError if an invariant does not hold. O(tokens)."""

@final
class BlockPool:
    """Reference counts and free blocks of a paged key-value cache; block 0 is reserved."""

    def __new__(cls, num_blocks: int) -> BlockPool: ...
    def allocate(self) -> int | None:
        """A free block, held once, or None."""
    def retain(self, block: int) -> None:
        """Holds a block once more."""
    def release(self, block: int) -> bool:
        """Lets a block go once; whether it is free then."""
    def count(self, block: int) -> int:
        """Holders of a block; 0 for one that is free, reserved or unknown."""
    @property
    def num_free(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    def check(self) -> None:
        """Raises LawBrokenError if an invariant does not hold. O(blocks)."""

@final
class Scheduler:
    """Search plus memory plus time: plans one flat step after another.

    Args:
        config: the rules of the search.
        seed: of all random numbers.
        num_blocks: blocks of the pool, the reserved block 0 included.
        block_size: tokens of a block.
        max_num_seqs: rows of a step at most.
        max_num_batched_tokens: tokens of a step at most.
        admission_percent: trees are admitted until the worst growth of all open trees fills this
            much of the pool.
        age_bias: what being one tree older is worth, in sampled tokens; 0 is fair to all trees,
            2**32 - 1 finishes old trees first.
        policy_version: of the weights, recorded for every token.
    """

    def __new__(
        cls,
        config: SearchConfig,
        *,
        seed: int = 0,
        num_blocks: int,
        block_size: int = 16,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        admission_percent: int = 200,
        age_bias: int = 32,
        policy_version: int = 0,
    ) -> Scheduler: ...
    def add_tree(self, key: int, prompt: _U32) -> int:
        """Queues a tree; `key` decides its random numbers. Returns the tree's index.

        Raises:
            InvalidInputError: an empty prompt.
            PromptTooLongError: nothing can be sampled behind it.
            PoolTooSmallError: the pool cannot hold one path of it.
            InvalidConfigError: a rule about text without `set_texts`.
        """
    def buffer_sizes(self) -> dict[str, int]:
        """Length that each plan and group array needs at most, by array name."""
    def plan_step(self, buffers: object) -> tuple[int, int, int, int, int]:
        """Fills the arrays of a treepo.core.PlanBuffers.

        Returns (num_rows, num_tokens, num_samples, num_copies, num_table_updates); all zero
        when nothing can run: no work remains, or every path that lives waits for a verdict.
        A plan is valid until its commit.
        """
    def commit_step(self, token_ids: _U32, logprobs: _F32, entropies: _F32) -> int:
        """Takes one entry a sample of the plan. Returns the number of trees that finished.

        A commit that is refused leaves the plan open.
        """
    def group_rows(self, buffers: object) -> int:
        """Fills the arrays of a treepo.core.GroupBuffers for the open plan.

        Returns the number of groups.
        """
    def tokens(self, tree: int, path: int) -> _U32:
        """The whole token sequence of a path."""
    def set_texts(self, texts: Iterable[bytes]) -> None:
        """Gives the rules about text the bytes of the token ids 0, 1, .. in order.

        A piece may be empty and need not be valid UTF-8. Comes before the first tree.
        """
    def ended_segments(self) -> _I32:
        """[n, 2] tree and path of each path that waits for a verdict (`verdicts="segments"`)."""
    def report(
        self,
        tree: int,
        path: int,
        verdict: _Verdict = "continue",
        *,
        score: float = 0.0,
    ) -> None:
        """Judges the segment that a path has ended; the round may end with it.

        Args:
            tree: the tree.
            path: a path of `ended_segments`.
            verdict: "continue" goes on, "stop" makes it a leaf, "prune" gives it up.
            score: finite; what `branch.by` and `prune.by` = "score" look at.

        Raises:
            InvalidInputError: the path does not wait for a verdict, or a bad score.
        """
    def fork(self, tree: int, path: int, at: int) -> int:
        """Starts a path that shares the first `at` tokens of `path`; returns its index.

        It joins the round. The tree is no longer replayable.

        Raises:
            InvalidInputError: the tree is done or has `width` leaves and live paths already, or
                nothing can be sampled at `at`.
        """
    def prune(self, tree: int, path: int) -> None:
        """Gives a live path up. The tree is no longer replayable."""
    def prune_subtree(self, tree: int, path: int, at: int) -> int:
        """Gives up every live path that shares the first `at` tokens of `path`; returns how many.

        The tree is no longer replayable if there are any.
        """
    def rewind(self, tree: int, path: int, at: int) -> int:
        """Goes back to the first `at` tokens of a live path; returns the path that starts there.

        The old path is pruned and does not count. The tree is no longer replayable.
        """
    def set_policy_version(self, version: int) -> None:
        """Sets the version of the weights, recorded for every token sampled from here on.

        No prompt prefix is shared with another tree that was computed with an earlier version.

        Raises:
            InvalidInputError: a plan is open, whose tokens are of the old version.
        """
    def abort_tree(self, tree: int) -> None:
        """Ends all live paths of a tree; one that is done stays as it is."""
    def set_priority(self, tree: int, priority: int) -> None:
        """Lets the paths of a tree run before those of smaller priority, 0 at the start.

        It decides when they run, never what they become. From -2**31 to 2**31 - 1.
        """
    def drop_memory(self) -> None:
        """Forgets all keys and values: what live paths need is computed again.

        Call it when the weights are new, the cache has been freed, or a step has failed: an open
        plan is given up and its tokens are planned again.
        """
    def is_done(self) -> bool:
        """Whether every tree is done."""
    def take_finished(self) -> list[int]:
        """Trees that finished since the last call, by index."""
    def sampled_paths(self) -> _I32:
        """[num_samples, 2] tree and path of each sample of the open plan, in its order."""
    @property
    def num_blocks(self) -> int:
        """Blocks of the pool that plans are made for, the reserved block 0 included."""
    @property
    def block_size(self) -> int:
        """Tokens of a block."""
    @property
    def max_num_seqs(self) -> int:
        """Rows of a step at most."""
    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens of a step at most."""
    @property
    def policy_version(self) -> int:
        """Version of the weights that is recorded for each token."""
    def stats(self) -> dict[str, int]:
        """Counters since the scheduler was made, by name."""
    def to_bytes(self) -> bytes:
        """A snapshot with the half-grown forest, for `from_bytes`. O(tokens)."""
    @staticmethod
    def from_bytes(bytes: bytes) -> Scheduler:
        """The scheduler of a snapshot, in any process; it goes on as that one would have.

        Keys and values are not kept: its first plans compute what live paths need. There is no
        snapshot while a plan is open.

        Raises:
            InvalidInputError: the bytes are damaged, cut short, or of another kind or version.
        """
    def forest(self, trees: _U32 | None = None) -> Forest:
        """A copy of the forest as it is, or of these trees of it, in the given order."""
    def check(self) -> None:
        """Raises LawBrokenError if an invariant does not hold. O(tokens + blocks)."""

@final
class Element:
    """Number format of a buffer; kernels compute in float32."""

    F32: ClassVar[Element]
    BF16: ClassVar[Element]
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __int__(self) -> int: ...

@final
class Activation:
    """Function of a gated feed-forward layer; GELU is exact, GELU_TANH its approximation."""

    SILU: ClassVar[Activation]
    GELU: ClassVar[Activation]
    GELU_TANH: ClassVar[Activation]
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __int__(self) -> int: ...

@final
class AttentionStep:
    """The rows of one step and where their keys and values are; made by `Kernels.step`."""

@final
class AttentionLayer:
    """What one layer's attention computes, and its keys and values.

    Args:
        num_heads: a multiple of `num_kv_heads`.
        num_kv_heads: heads of keys and values.
        key_dim: width of queries and keys.
        value_dim: width of values.
        scaling: factor of the scores.
        keys: address of [num_blocks, num_kv_heads, padded_key_dim(key_dim) / n, block_size, n]; n
            numbers make 32 bits, two in bfloat16 and one in float32. A zero fills up an odd key.
        values: address of [num_blocks, num_kv_heads, block_size, padded_value_dim(value_dim)].
        window: a query at position p sees keys above p - window.
        softcap: scores become softcap * tanh(score / softcap).
        sinks: one extra logit a head, without a value.

    Raises:
        InvalidInputError: heads do not divide, or sinks are missing.
    """

    def __new__(
        cls,
        *,
        num_heads: int,
        num_kv_heads: int,
        key_dim: int,
        value_dim: int,
        scaling: float,
        keys: int,
        values: int,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Sequence[float] | None = None,
    ) -> AttentionLayer: ...

_Norm = tuple[int, int, float, float]
"""Address of the weight, width, eps, offset."""
_Packed = tuple[int, tuple[int, int], int | None]
"""Address of the packed weight, inputs and outputs, address of the bias."""

@final
class DecoderLayer:
    """A pre-norm decoder layer whose parts are all kernels.

    Args:
        element: number format of all its buffers.
        attention: its attention; values are as wide as keys.
        activation: function of the gate.
        rotates: whether queries and keys are rotated by their positions.
        norms: in front of attention and of the feed-forward part.
        head_norms: of each head's queries and keys.
        qkv: queries, keys and values side by side.
        output: product behind attention.
        gate_up: gate and up side by side.
        down: product behind the gate.

    Raises:
        InvalidInputError: The parts do not fit together.
    """

    def __new__(
        cls,
        element: Element,
        attention: AttentionLayer,
        activation: Activation,
        *,
        rotates: bool,
        norms: Sequence[_Norm],
        head_norms: Sequence[_Norm] | None,
        qkv: _Packed,
        output: _Packed,
        gate_up: _Packed,
        down: _Packed,
    ) -> DecoderLayer: ...

@final
class DecoderModel:
    """A language model whose parts are all kernels: head(norm(layers(embedding[ids]))).

    Args:
        element: number format of all its buffers.
        layers: at least one.
        embedding: address, rows, elements from row to row; a row is as wide as the layers.
        norm: behind the last layer.
        head: an output for each token of the vocabulary.

    Raises:
        InvalidInputError: The parts do not fit together.
    """

    def __new__(
        cls,
        element: Element,
        layers: Sequence[DecoderLayer],
        *,
        embedding: tuple[int, int, int],
        norm: _Norm,
        head: _Packed,
    ) -> DecoderModel: ...

@final
class Kernels:
    """CPU kernels: threads and an instruction set.

    Buffers are given by address, strides in elements; nothing about them can be checked here, and
    a wrong one ends the process. `treepo.engine.kernels` calls them on torch tensors.

    Args:
        num_threads: threads that share a kernel's work.
        gomp_parallel: address of OpenMP's function of that name, whose threads do the work; a
            parked pool does without.
        level: portable, neon, avx2, avx512 or avx512_bf16; the fastest of this processor if absent.

    Raises:
        InvalidInputError: this processor lacks the level.
    """

    def __new__(
        cls, num_threads: int, *, gomp_parallel: int | None = None, level: str | None = None
    ) -> Kernels: ...
    @property
    def level(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    def awake(self, function: Callable[[Kernels], _T]) -> _T:
        """Calls a function with kernels whose threads wait for work without sleeping.

        The threads are taken for the whole call: OpenMP regions inside it have one thread.
        """

    @staticmethod
    def levels() -> list[str]:
        """Levels of this processor, slowest first."""

    @staticmethod
    def padded_key_dim(key_dim: int) -> int:
        """Width of a key in the pool: `key_dim`, or one more if that is odd."""

    @staticmethod
    def padded_value_dim(value_dim: int) -> int:
        """Width of a value row in the pool: the next multiple of 16."""

    @staticmethod
    def step(
        *,
        num_blocks: int,
        block_size: int,
        query_starts: _I32,
        kv_lens: _I32,
        tables: _I32,
        table_rows: _I32,
        slots: _I64,
        row_order: _I32,
        groups: _I32,
    ) -> AttentionStep:
        """Reads the rows of a step; arrays as in a plan, a slot of -1 is written nowhere.

        Raises:
            InvalidInputError: a table, slot or length does not fit the pool.
        """

    def attend(
        self,
        element: Element,
        step: AttentionStep,
        layer: AttentionLayer,
        query: _Heads,
        key: _Heads,
        value: _Heads,
        output: int,
    ) -> None:
        """Writes keys and values, then attends; output [num_tokens, num_heads, value_dim]."""

    def decoder_layers(
        self,
        layers: Sequence[DecoderLayer],
        step: AttentionStep,
        num_rows: int,
        rotary: tuple[int, int, int] | None,
        input: _Rows,
        output: int,
    ) -> None:
        """Computes layers, one after another, for a step's tokens; output [num_rows, width].

        rotary: rotated width, addresses of cosines and sines [num_rows, rotated width]; for the
        layers that rotate.

        Raises:
            InvalidInputError: The step has not `num_rows` tokens, layers differ in width or format,
                one rotates and there is no `rotary`, or it is wider than a key.
            MemoryError: There is no memory for what lies between the kernels.
        """

    def logits(
        self,
        model: DecoderModel,
        step: AttentionStep,
        token_ids: _I64,
        wanted: _I64 | None,
        rotary: tuple[int, int, int] | None,
        output: int,
    ) -> None:
        """Computes the logits of a step's tokens; output [num_wanted, outputs of the head].

        token_ids: i64 [num_tokens]. wanted: i64 [num_wanted], tokens whose logits are wanted, by
        their place in the step; all if absent. rotary: as in `decoder_layers`.

        Raises:
            InvalidInputError: Tokens, places or `rotary` do not fit the model and the step.
            MemoryError: As in `decoder_layers`.
        """

    def packed_len(self, element: Element, shape: tuple[int, int]) -> int:
        """Elements of a packed weight; shape: inputs, outputs."""

    def pack(self, element: Element, shape: tuple[int, int], weight: _Rows, packed: int) -> None:
        """Packs a weight [outputs, inputs] for `linear`."""

    def linear(
        self,
        element: Element,
        num_rows: int,
        shape: tuple[int, int],
        input: _Rows,
        packed: int,
        bias: int | None,
        residual: _Rows | None,
        output: int,
    ) -> None:
        """Rows times a packed weight, plus bias and residual; output [num_rows, outputs]."""

    def rms_norm(
        self,
        element: Element,
        num_rows: int,
        width: int,
        eps: float,
        offset: float,
        input: _Rows,
        weight: int,
        output: int,
    ) -> None:
        """X * rsqrt(mean(x^2) + eps) * (offset + weight), rows contiguous."""

    def gate(
        self,
        element: Element,
        num_rows: int,
        width: int,
        activation: Activation,
        gate: _Rows,
        up: _Rows,
        output: int,
    ) -> None:
        """activation(gate) * up."""

    def rotate(
        self,
        element: Element,
        shape: tuple[int, int, int, int, int],
        query: _Heads,
        key: _Heads,
        cos: int,
        sin: int,
        query_output: int,
        key_output: int,
    ) -> None:
        """Rotates halves; shape is tokens, query heads, key heads, head width, rotated width."""

    def sample(
        self,
        element: Element,
        logits: tuple[int, int, int, int],
        rows: _I64 | None,
        uniforms: _F64,
        params: tuple[float, int, float, float],
        token_ids: _U32,
        logprobs: _F32,
        entropies: _F32,
    ) -> int | None:
        """Draws a token for each uniform; returns the first row that is not finite.

        `logits` is address, rows, vocabulary, elements from row to row; `params` is temperature,
        top-k, top-p, min-p.
        """

    def token_logprobs(
        self,
        element: Element,
        logits: tuple[int, int, int, int],
        targets: _I64,
        temperature: float,
        logprobs: _F32,
        entropies: _F32,
    ) -> int | None:
        """Log-prob of one token a row and the row's entropy, by the arithmetic of `sample`."""
