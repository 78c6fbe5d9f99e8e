"""The forest as numpy columns: what the sampler fills, credit reads and the trainer packs.

A forest is a list of PATHS. A path's token sequence is its parent's first `at` tokens followed by
its own; every path is a leaf, so there are as many paths as trajectories. Segments are marks along
a path, nodes are derived. All arrays are read-only.

Legend of the shapes: T trees, P paths of all trees, N unique tokens, M marks, K nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treepo import core
from treepo.errors import DataError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

__all__ = [
    "Dependence",
    "FinishReason",
    "Forest",
    "ForkOrigin",
    "Marks",
    "Nodes",
    "Paths",
    "TokenKind",
    "Tokens",
    "Trees",
]


class TokenKind(IntEnum):
    """Where a token comes from; only sampled tokens enter a loss."""

    PROMPT = 0
    SAMPLED = 1
    GIVEN = 2


class FinishReason(IntEnum):
    """Why a path ended; NONE while it lives."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    DEPTH = 3
    REPETITION = 4
    PRUNED = 5
    ABORT = 6


class ForkOrigin(IntEnum):
    """Why a path was started."""

    ROOT = 0
    INITIAL = 1
    BRANCH = 2
    FALLBACK = 3
    CALLER = 4


class Dependence(IntEnum):
    """What the forks of a tree depended on."""

    PREFIX = 0
    """Only on tokens before the fork."""
    SAMPLED_TOKEN = 1
    """Also on sampled tokens behind the fork."""


@dataclass(frozen=True, slots=True)
class Trees:
    """Columns of the trees."""

    key: U64
    """[T] the caller's key of each tree."""
    stream: U64
    """[T] root of the tree's random numbers."""
    prompt_len: I32
    """[T] tokens of the prompt."""
    replayable: U8
    """[T] 1 where seed, key, prompt, config and model decide the tree; 0 for an aborted one."""
    dependence: U8
    """[T] Dependence."""
    path_start: I32
    """[T + 1] tree t owns the paths path_start[t] .. path_start[t + 1]."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Columns of the paths, tree by tree."""

    tree: I32
    """[P] the tree."""
    parent: I32
    """[P] number of the path that owns token at - 1, or -1 for the path with the prompt."""
    at: I32
    """[P] length of the prefix that belongs to ancestors, in tokens."""
    token_start: I64
    """[P + 1] path p owns the tokens token_start[p] .. token_start[p + 1]."""
    length: I32
    """[P] tokens of the whole sequence, prompt included."""
    stream: U64
    """[P] stream of the path's random numbers."""
    finish: U8
    """[P] FinishReason."""
    origin: U8
    """[P] ForkOrigin."""
    weight: F32
    """[P] inclusion weight, 1 unless a policy over- or under-sampled the path."""
    reward: F32
    """[P] reward of the trajectory, NaN until set."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Columns of the unique tokens, path by path."""

    id: I32
    """[N] token id."""
    kind: U8
    """[N] TokenKind."""
    logprob: F32
    """[N] log-probability in nats of the distribution sampled from; NaN unless sampled."""
    entropy: F32
    """[N] full-vocabulary entropy in nats at the sampling temperature; NaN unless sampled."""
    version: I32
    """[N] version of the weights that sampled the token."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Ends of segments."""

    path: I32
    """[M] the path, ascending."""
    pos: I32
    """[M] absolute position behind the segment's last token."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes in depth-first preorder: maximal runs of tokens between marks and forks.

    Parents come first, a subtree is contiguous, the continuing path comes before the forks and
    these in the order of their paths. Each prompt is one node, the root of its tree.
    """

    tree: I32
    """[K] the tree."""
    path: I32
    """[K] the path that owns the node's tokens."""
    start: I32
    """[K] absolute position of the first token."""
    end: I32
    """[K] absolute position behind the last token."""
    parent: I32
    """[K] the parent node, -1 for a root."""
    depth: I32
    """[K] segments from the root, whose depth is 0."""
    subtree_end: I32
    """[K] index behind the last node of the node's subtree."""
    leaf: I32
    """[P] the node that holds each path's last token."""
    token_start: I64
    """[K] index of the node's first token in the token columns."""


_PREFIXES = {"trees": "tree_", "paths": "path_", "tokens": "token_", "marks": "mark_"}
_PLAIN = {"path_start", "token_start"}


def _column(group: str, name: str) -> str:
    return name if name in _PLAIN else _PREFIXES[group] + name


class Forest:
    """Trees of token paths with their log-probabilities, marks and rewards.

    Args:
        forest: the core's forest; it is not to be changed afterwards but through this object.
    """

    def __init__(self, forest: core.Forest) -> None:
        self._core = forest

    @classmethod
    def from_columns(cls, columns: Mapping[str, npt.NDArray[Any]]) -> Forest:
        """Builds a forest from the columns that `columns()` returns.

        Raises:
            InvalidInputError: a column is missing or the columns describe no forest.
        """
        return cls(core.Forest.from_columns(columns))

    def __reduce__(self) -> tuple[Callable[..., Forest], tuple[dict[str, npt.NDArray[Any]]]]:
        """Copies and pickles the columns, so that a copy has a core of its own."""
        return Forest.from_columns, (self.columns(),)

    @property
    def core(self) -> core.Forest:
        """The core's forest."""
        return self._core

    @property
    def num_trees(self) -> int:
        """Number of trees T."""
        return self._core.num_trees

    @property
    def num_paths(self) -> int:
        """Number of paths P, which is the number of leaves."""
        return self._core.num_paths

    @property
    def num_tokens(self) -> int:
        """Number of unique tokens N, prompts included."""
        return self._core.num_tokens

    @cached_property
    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        return self._core.columns()

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All columns by name, for files and other programs."""
        return dict(self._columns)

    def _group(self, group: str, kind: type) -> Any:
        columns = self._columns
        return kind(**{f.name: columns[_column(group, f.name)] for f in fields(kind)})

    @cached_property
    def trees(self) -> Trees:
        """Columns of the trees."""
        trees: Trees = self._group("trees", Trees)
        return trees

    @cached_property
    def paths(self) -> Paths:
        """Columns of the paths."""
        paths: Paths = self._group("paths", Paths)
        return paths

    @cached_property
    def tokens(self) -> Tokens:
        """Columns of the unique tokens."""
        tokens: Tokens = self._group("tokens", Tokens)
        return tokens

    @cached_property
    def marks(self) -> Marks:
        """Ends of segments."""
        marks: Marks = self._group("marks", Marks)
        return marks

    @cached_property
    def _nodes(self) -> Nodes:
        derived = self._core.nodes()
        path = derived["path"]
        own = derived["start"] - self.paths.at[path]
        token_start = self.paths.token_start[path] + own
        token_start.flags.writeable = False
        return Nodes(token_start=token_start, **derived)

    def nodes(self) -> Nodes:
        """The nodes, derived once in O(tokens)."""
        return self._nodes

    def token_index(self, path: int) -> I64:
        """Where the tokens of a path's whole sequence stand in the token columns, [length]."""
        paths = self.paths
        if not 0 <= path < self.num_paths:
            message = f"path {path} of a forest of {self.num_paths} paths"
            raise InvalidInputError(message)
        pieces: list[I64] = []
        end = int(paths.length[path])
        while path >= 0:
            at, start = int(paths.at[path]), int(paths.token_start[path])
            pieces.append(np.arange(start, start + max(end - at, 0), dtype=np.int64))
            end = min(end, at)
            path = int(paths.parent[path])
        return np.concatenate(pieces[::-1])

    def token_ids(self, path: int) -> I32:
        """The path's whole token sequence, prompt included, [length]."""
        return self.tokens.id[self.token_index(path)]

    def prompt_ids(self, tree: int) -> I32:
        """Tokens of a tree's prompt, [prompt_len]."""
        if not 0 <= tree < self.num_trees:
            message = f"tree {tree} of a forest of {self.num_trees} trees"
            raise InvalidInputError(message)
        start = int(self.paths.token_start[self.trees.path_start[tree]])
        return self.tokens.id[start : start + int(self.trees.prompt_len[tree])]

    def completion_ids(self, path: int) -> I32:
        """The path's tokens behind the prompt, [length - prompt_len]."""
        return self.token_ids(path)[self.trees.prompt_len[self.paths.tree[path]] :]

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of all completions, a shared token counted once for each completion."""
        prompt_len = self.trees.prompt_len[self.paths.tree]
        return int((self.paths.length - prompt_len).sum(dtype=np.int64))

    @property
    def num_unique_completion_tokens(self) -> int:
        """Unique tokens behind the prompts."""
        return self.num_tokens - int(self.trees.prompt_len.sum(dtype=np.int64))

    @property
    def share_ratio(self) -> float:
        """Completion tokens over unique completion tokens; 1 where nothing is shared."""
        return self.num_completion_tokens / max(self.num_unique_completion_tokens, 1)

    def set_rewards(self, rewards: npt.ArrayLike) -> None:
        """Sets the reward of every path, [P].

        Raises:
            InvalidInputError: the number of rewards is not the number of paths.
        """
        self._core.set_rewards(np.ascontiguousarray(rewards, dtype=np.float32))
        for name in ("_columns", "paths"):
            self.__dict__.pop(name, None)

    def select(self, trees: Sequence[int] | I64) -> Forest:
        """A forest of these trees, in the given order.

        Raises:
            InvalidInputError: a tree does not exist, or `trees` is no list of indices.
        """
        index = np.asarray(trees)
        if index.size == 0:
            index = index.astype(np.uint32)
        if index.dtype.kind not in "iu":
            message = f"trees are indices, got {index.dtype}; of a mask take numpy.flatnonzero"
            raise InvalidInputError(message)
        wrong = index[(index < 0) | (index >= self.num_trees)]
        if wrong.size:
            message = f"tree {wrong.flat[0]} of a forest of {self.num_trees} trees"
            raise InvalidInputError(message)
        return Forest(self._core.select(np.ascontiguousarray(index, dtype=np.uint32)))

    @staticmethod
    def concatenate(forests: Sequence[Forest]) -> Forest:
        """One forest with the trees of all, in order."""
        return Forest(core.Forest.concatenate([forest.core for forest in forests]))

    def save(self, file: str | Path) -> None:
        """Writes the columns to a safetensors file. Needs the `train` extra.

        Raises:
            DataError: the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        try:
            save_file(self.columns(), str(file), metadata={"format": "treepo.forest"})
        except (OSError, SafetensorError) as error:
            message = f"cannot write {file}: {error}"
            raise DataError(message) from error

    @classmethod
    def load(cls, file: str | Path) -> Forest:
        """Reads a file that `save` wrote. Needs the `train` extra.

        The trees of a file without the column `tree_dependence` have `Dependence.PREFIX`.

        Raises:
            DataError: the file cannot be read or holds no forest.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            columns = load_file(str(file))
            if "tree_key" in columns:
                prefix = np.full(columns["tree_key"].size, Dependence.PREFIX, np.uint8)
                columns.setdefault("tree_dependence", prefix)
            return cls.from_columns(columns)
        except (OSError, SafetensorError, InvalidInputError) as error:
            message = f"{file} is not a forest file: {error}"
            raise DataError(message) from error
