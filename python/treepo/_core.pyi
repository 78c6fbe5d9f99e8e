"""Typed view of the extension module; the Rust crate `treepo` does the work."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

__version__: Final[str]

class TreepoError(Exception): ...
class InvalidConfigError(TreepoError, ValueError): ...
class InvalidInputError(TreepoError, ValueError): ...
class PromptTooLongError(TreepoError, ValueError): ...
class PoolTooSmallError(TreepoError, MemoryError): ...
class NotFiniteError(TreepoError, ArithmeticError): ...
class BufferTooSmallError(TreepoError, ValueError): ...
class LawBrokenError(TreepoError, AssertionError): ...

class SearchConfig:
    def __new__(
        cls,
        *,
        width: int = 8,
        segment_len: int = 64,
        max_depth: int = 8,
        branch_factor: int = 2,
        initial_divergence: int = 2,
        fallback: str = "answered",
        max_completion_len: int | None = None,
        max_model_len: int | None = None,
        eos_token_ids: list[int] = ...,
    ) -> SearchConfig: ...
    @property
    def width(self) -> int: ...
    @property
    def segment_len(self) -> int: ...
    @property
    def max_depth(self) -> int: ...
    @property
    def branch_factor(self) -> int: ...
    @property
    def initial_divergence(self) -> int: ...
    @property
    def fallback(self) -> str: ...
    @property
    def max_completion_len(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def eos_token_ids(self) -> list[int]: ...

class Forest:
    """Trees of token paths; grown by a search or by hand through `add_tree`, `fork`, `append`."""

    def __new__(cls) -> Forest: ...
    @staticmethod
    def from_columns(columns: Mapping[str, npt.NDArray[Any]]) -> Forest: ...
    def add_tree(self, key: int, prompt: U32, *, seed: int = 0) -> int:
        """Returns the tree index. Its path 0 holds the prompt; `prompt` has at least one token."""
    def fork(self, tree: int, path: int, at: int) -> int:
        """Returns the new path's index within the tree; `prompt_len <= at <= len(path)`."""
    def append(
        self,
        tree: int,
        path: int,
        token_ids: U32,
        logprobs: F32,
        entropies: F32,
        *,
        version: int = 0,
    ) -> None:
        """Appends sampled tokens to a live path."""
    def append_given(self, tree: int, path: int, token_ids: U32) -> None:
        """Appends tokens that were not sampled: the output of a tool, or the user's text."""
    def mark(self, tree: int, path: int) -> None:
        """Ends a segment at the path's current length."""
    def finish(self, tree: int, path: int, reason: int) -> None: ...
    def set_rewards(self, rewards: F32) -> None:
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
    def nodes(self) -> dict[str, I32]:
        """Derived nodes in depth-first preorder, see treepo.forest.Nodes. One O(tokens) pass."""
    def select(self, trees: U32) -> Forest:
        """A copy of these trees, in the given order."""
    @staticmethod
    def concatenate(forests: list[Forest]) -> Forest:
        """A copy of all trees of all forests, in order."""
    def check(self) -> None:
        """Raises with the broken law if an invariant does not hold."""

class Search:
    """The tree search at segment granularity, over any function that continues tokens."""

    def __new__(cls, config: SearchConfig, *, seed: int = 0) -> Search: ...
    def add_tree(self, key: int, prompt: U32) -> int: ...
    def segments(self) -> I32:
        """[n, 3] tree, path and max_new_tokens of each segment that waits to be run."""
    def tokens(self, tree: int, path: int) -> U32:
        """The whole token sequence of a path."""
    def complete_segment(
        self,
        tree: int,
        path: int,
        token_ids: U32,
        logprobs: F32,
        entropies: F32,
    ) -> None:
        """Append a segment, which ends at its limit or first eos, and advance the tree."""
    def is_done(self) -> bool: ...
    def forest(self) -> Forest:
        """A copy of the forest as it is."""

class BlockPool:
    def __new__(cls, num_blocks: int) -> BlockPool: ...
    def allocate(self) -> int | None: ...
    def retain(self, block: int) -> None: ...
    def release(self, block: int) -> bool: ...
    def count(self, block: int) -> int: ...
    @property
    def num_free(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    def check(self) -> None: ...

class Scheduler:
    """Search plus memory plus time: plans one flat step after another."""

    def __new__(
        cls,
        config: SearchConfig,
        *,
        seed: int = 0,
        num_blocks: int,
        block_size: int = 16,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        policy_version: int = 0,
    ) -> Scheduler: ...
    def add_tree(self, key: int, prompt: U32) -> int: ...
    def buffer_sizes(self) -> dict[str, int]:
        """Length that each plan array needs at most, by array name."""
    def plan_step(self, buffers: object) -> tuple[int, int, int, int, int]:
        """Fill the arrays of a treepo.core.PlanBuffers.

        Returns (num_rows, num_tokens, num_samples, num_copies, num_table_updates); all zero
        when no work remains. A plan is valid until its commit.
        """
    def commit_step(self, token_ids: U32, logprobs: F32, entropies: F32) -> int:
        """One entry a sample of the plan. Returns the number of trees that finished."""
    def is_done(self) -> bool: ...
    def take_finished(self) -> list[int]:
        """Trees that finished since the last call, by index."""
    def abort_tree(self, tree: int) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def forest(self) -> Forest: ...
    def check(self) -> None: ...
