"""How a tree gets its leaves: what ends paths, what gives them up, where missing ones start."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from treepo.config.schema import Section, at_least, at_most, check_counts
from treepo.errors import InvalidConfigError


class FallbackFrom(StrEnum):
    """Which leaves a tree may restart from when leaves are missing."""

    NOTHING = "nothing"
    """None: a tree may end with fewer leaves than its width. `none` is read as this."""
    ANSWERED = "answered"
    """Leaves that stopped by themselves: end of sequence, stop string, box, verdict; shuffled."""
    ALL = "all"
    """All leaves that count, in random order."""
    PRIORITY = "priority"
    """All leaves that count, drawn without replacement with the weight of their finish reason:
    stop 5, depth 4, length 3, repetition 2."""
    LONGEST = "longest"
    """All leaves that count, drawn without replacement with the length of their completion."""

    @classmethod
    def _missing_(cls, value: object) -> "FallbackFrom | None":
        return cls.NOTHING if value == "none" else None


class FallbackAt(StrEnum):
    """Where a restart cuts the leaf that it starts from."""

    BOUNDARY = "boundary"
    """A uniformly drawn segment boundary before the leaf's end."""
    WINDOW = "window"
    """A whole number of windows before the last one begins: a completion of length L has
    T = ceil(L / window) windows, k is drawn of 1..min(T, max_windows), the cut is (T - k) *
    window."""
    LOWEST_LOGPROB = "lowest_logprob"
    """Before the sampled token with the lowest log-probability."""
    UNSURE_BLOCK = "unsure_block"
    """The start of a block of `window` tokens, drawn by softmax(-mean log-probability)."""
    SURE_BLOCK = "sure_block"
    """As unsure_block, by softmax(+mean log-probability)."""
    PROMPT = "prompt"
    """The end of the prompt."""


class Alignment(StrEnum):
    """Whether cuts fall on segment boundaries."""

    SEGMENT = "segment"
    """A cut moves down to the nearest segment boundary."""
    TOKEN = "token"
    """A cut stays where it is."""


class Refill(StrEnum):
    """When missing leaves are started."""

    LATE = "late"
    """When no path lives."""
    EARLY = "early"
    """In the round in which it is certain that the live paths cannot become enough leaves, so that
    a tree does not end in small late batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FallbackConfig(Section):
    """Where missing leaves come from."""

    SHORT: ClassVar[str | None] = "from"

    from_: FallbackFrom = FallbackFrom.ANSWERED
    """Which leaves a tree restarts from; `search.fallback=X` is short for this."""
    at: FallbackAt = FallbackAt.BOUNDARY
    """Where they are cut."""
    window: int | None = None
    """Tokens of a window or block; absent: segment_len."""
    max_windows: int | None = None
    """Windows that a cut goes back at most; absent: all."""
    alignment: Alignment = Alignment.SEGMENT
    """Whether cuts fall on segment boundaries."""
    refill: Refill = Refill.LATE
    """When missing leaves are started."""
    copies: int | None = None
    """Forks of each restart; absent: branch_factor."""

    def _check(self) -> None:
        check_counts(self)


class Boxed(StrEnum):
    r"""What a complete `\boxed{..}` in the text does."""

    IGNORED = "ignored"
    """Nothing."""
    STOPS = "stops"
    """The token that closes it ends the path as a stop."""


class Repetition(StrEnum):
    """What repetition is looked for in."""

    IGNORED = "ignored"
    """Nothing."""
    TOKENS = "tokens"
    """Token ids."""
    BYTES = "bytes"
    """Bytes of the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StopConfig(Section):
    """What ends a path besides an end of sequence, length and depth."""

    strings: tuple[str, ...] = ()
    """Texts that end a path as a stop with the token that completes them; a JSON list or one
    text."""
    boxed: Boxed = Boxed.IGNORED
    """What a boxed answer does."""
    repetition: Repetition = Repetition.IGNORED
    """What repetition is looked for in, at the end of each segment."""
    repetition_len: int = 32
    """Length of the piece that repeats, in tokens or bytes."""
    repetition_count: int = 8
    """Occurrences, overlapping ones included, that end a path."""
    repetition_window: int = 1024
    """Tokens from the path's end that are looked at."""

    def _check(self) -> None:
        check_counts(self, {"repetition_count": 2})
        if "" in self.strings:
            raise InvalidConfigError("strings holds an empty text, which would end every path")

    @property
    def needs_texts(self) -> bool:
        """Whether a rule reads the text of tokens."""
        reads_bytes = self.repetition is Repetition.BYTES
        return bool(self.strings) or self.boxed is Boxed.STOPS or reads_bytes


class PruneBy(StrEnum):
    """What the confidence of a path is."""

    NOTHING = "nothing"
    """No path is pruned."""
    LOGPROB = "logprob"
    """Mean log-probability of the last `window` sampled tokens."""
    ENTROPY = "entropy"
    """Minus the mean entropy of the last `window` sampled tokens."""
    SCORE = "score"
    """The judge's score of the last segment."""


class PrunedLeaves(StrEnum):
    """Whether pruned leaves count towards the width."""

    COUNT = "count"
    """They do: the tree ends with fewer whole answers."""
    ARE_REPLACED = "are_replaced"
    """They do not: the tree grows others. From the width-th on they count, so that a tree ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneConfig(Section):
    """Giving up on paths: windowed confidence after DeepConf (arXiv 2508.15260).

    A path that is given up is scored and trained on like any other, by the text that is there.
    """

    by: PruneBy = PruneBy.NOTHING
    """What confidence is."""
    window: int = 64
    """Tokens of a confidence window; windows do not overlap."""
    threshold: float | None = None
    """A path is pruned below this confidence; absent: never."""
    warmup_leaves: int = 0
    """With more than 0, the threshold is a quantile of the lowest confidences of the tree's own
    first leaves, this many."""
    warmup_quantile: float = 0.1
    """That quantile: 0.1 prunes what is less confident than nine of ten."""
    leaves: PrunedLeaves = PrunedLeaves.COUNT
    """Whether pruned leaves count."""

    def _check(self) -> None:
        check_counts(self, {"warmup_leaves": 0})
        at_least("warmup_quantile", self.warmup_quantile, 0)
        at_most("warmup_quantile", self.warmup_quantile, 1)
