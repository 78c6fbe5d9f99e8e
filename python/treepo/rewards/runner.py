"""Scoring completions in worker processes, under a time limit."""

import inspect
import itertools
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from treepo.errors import RewardError
from treepo.rewards import base
from treepo.rewards.registry import resolve
from treepo.rewards.worker import (
    Arguments,
    Failure,
    Refusal,
    Reply,
    Values,
    Worker,
    attempt,
    pack_function,
)

MAX_TIMEOUTS = 16
"""Completions of a batch that may hang before the rest is given up: it bounds the wait."""
MAX_DEATHS = 32
"""Completions of a batch that may kill their worker process before the rest is given up: each costs
a new process."""
MAX_LOST_CALLS = 40
"""Calls for several completions that may hang or kill their process before the rest is given up."""
MAX_LOST_AT_FIRST = 12
"""The same as long as no call of the batch has come back: the function may not work at all."""
_NUM_PARTS = 4
"""Parts in which a call that failed is made again: what is to blame is found in few calls."""

_RESERVED = ("prompts", "completions", "completion_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResult:
    """The rewards of a batch.

    Attributes:
        values: f32[N]; NaN where the function returned None, raised or ran out of time.
        is_failed: bool[N]; true where it raised or ran out of time.
        num_timeouts: Completions without a reward because of the time limit.
        num_errors: Completions without a reward because the function raised or its process died.
        num_slow_calls: Calls for several completions that ran out of time, and were made again in
            parts.
        first_error: One of those errors as a line of text, or None.
    """

    values: npt.NDArray[np.float32]
    is_failed: npt.NDArray[np.bool_]
    num_timeouts: int
    num_errors: int
    num_slow_calls: int
    first_error: str | None

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the rewards of batches, at least one, as of one batch."""
        return cls(
            values=np.concatenate([part.values for part in parts]),
            is_failed=np.concatenate([part.is_failed for part in parts]),
            num_timeouts=sum(part.num_timeouts for part in parts),
            num_errors=sum(part.num_errors for part in parts),
            num_slow_calls=sum(part.num_slow_calls for part in parts),
            first_error=next((part.first_error for part in parts if part.first_error), None),
        )


@dataclass(slots=True, kw_only=True)
class _Batch:
    """Calls to make and what came out so far."""

    arguments: Arguments
    values: npt.NDArray[np.float32]
    is_failed: npt.NDArray[np.bool_]
    pending: deque[range]
    num_timeouts: int = 0
    num_errors: int = 0
    num_slow_calls: int = 0
    first_error: str | None = None
    _num_deaths: int = field(default=0)
    _num_hung: int = field(default=0)
    _num_lost_calls: int = field(default=0)
    _has_worked: bool = field(default=False)

    def slice(self, span: range) -> Arguments:
        """The arguments of the completions of a span."""
        return {name: column[span.start : span.stop] for name, column in self.arguments.items()}

    def take(self, span: range, reply: Reply) -> None:
        """Record how a call ended; a failed call of several completions is redone in parts."""
        match reply:
            case Values(values=values):
                self.values[span.start : span.stop] = values
                self._has_worked = True
            case Refusal(message=message):
                raise RewardError(message)
            case Failure(message=message, is_death=is_death):
                if len(span) > 1:
                    self._num_lost_calls += is_death
                    self._redo(span)
                else:
                    self._num_deaths += is_death
                    self.num_errors += self._fail(span)
                    self.first_error = self.first_error or message
                if is_death and self._is_hopeless():
                    self.first_error = self.first_error or message
                    self.num_errors += self._give_up()

    def time_out(self, span: range) -> None:
        """Record a call that ran out of time."""
        if len(span) > 1:
            self.num_slow_calls += 1
            self._num_lost_calls += 1
            self._redo(span)
        else:
            self._num_hung += 1
            self.num_timeouts += self._fail(span)
        if self._is_hopeless():
            self.num_timeouts += self._give_up()

    def _is_hopeless(self) -> bool:
        """Whether so much hung or died that the rest would take too long."""
        counts = (self._num_hung, self._num_deaths, self._num_lost_calls)
        most = MAX_LOST_CALLS if self._has_worked else MAX_LOST_AT_FIRST
        limits = (MAX_TIMEOUTS, MAX_DEATHS, most)
        return any(count >= limit for count, limit in zip(counts, limits, strict=True))

    def _fail(self, span: range) -> int:
        """Leave a span without a reward; returns how many completions that are."""
        self.is_failed[span.start : span.stop] = True
        return len(span)

    def _give_up(self) -> int:
        """Leave all that is pending without a reward; returns how many completions that are."""
        count = sum(map(self._fail, self.pending))
        self.pending.clear()
        return count

    def _redo(self, span: range) -> None:
        """Queue parts of a span behind what waits already, which may be sound."""
        parts = _split(len(span), _NUM_PARTS)
        self.pending.extend(span[part.start : part.stop] for part in parts)

    def result(self) -> RewardResult:
        """The batch as the caller sees it."""
        return RewardResult(
            values=self.values,
            is_failed=self.is_failed,
            num_timeouts=self.num_timeouts,
            num_errors=self.num_errors,
            num_slow_calls=self.num_slow_calls,
            first_error=self.first_error,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A call that a worker is busy with."""

    worker: Worker
    span: range
    deadline: float


class RewardRunner:
    """Calls a reward function in worker processes.

    A batch is one call; with several workers each of them gets a contiguous part of it. A call that
    raises, kills its process or exceeds the time limit is made again in parts, down to single
    completions, so that only those to blame go without a reward. Use it as a context manager or
    call `close`; the workers also end with this process.
    """

    def __init__(
        self,
        reward: str | Callable[..., object],
        timeout_s: float = 5.0,
        num_workers: int = 1,
    ) -> None:
        """Check the function; workers start with the first batch.

        Args:
            reward: A name for `treepo.rewards.resolve`, or a function of an importable module.
            timeout_s: Wall-clock seconds that one call may take, above 0.
            num_workers: Processes; 0 calls the function in this process, without a time limit,
                which suits functions that exist in this process only.

        Raises:
            RewardError: The function is not found or cannot be sent to a worker, or a number is out
                of range.
        """
        if not timeout_s > 0:
            raise RewardError(f"timeout_s is {timeout_s}, must be above 0")
        if num_workers < 0:
            raise RewardError(f"num_workers is {num_workers}, must be at least 0")
        self._function = resolve(reward) if isinstance(reward, str) else reward
        self._packed = pack_function(reward) if num_workers else b""
        self._timeout_s = timeout_s
        self._workers: list[Worker | None] = [None] * num_workers
        self._finalizer = weakref.finalize(self, _stop_all, self._workers)

    def score(
        self,
        prompts: Sequence[object],
        completions: Sequence[base.Completion],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[object]],
    ) -> RewardResult:
        """Score a batch.

        Waits at most about `timeout_s * (MAX_TIMEOUTS + MAX_LOST_CALLS)` for calls that hang; for
        those that kill their process starts no more than `MAX_DEATHS + MAX_LOST_CALLS`.

        Args:
            prompts: Texts or message lists, one a completion.
            completions: Texts or message lists.
            completion_ids: Token ids of the completions.
            columns: Further columns of the data set, one entry a completion, passed by name.

        Returns:
            The rewards and how many are missing why.

        Raises:
            RewardError: Columns differ in length, the function needs a column that is missing, or
                it returns something else than a number or None for each completion.
        """
        arguments = self._arguments(prompts, completions, completion_ids, columns)
        spans = _split(len(completions), max(1, len(self._workers)))
        batch = _Batch(
            arguments=arguments,
            values=np.full(len(completions), math.nan, dtype=np.float32),
            is_failed=np.zeros(len(completions), dtype=np.bool_),
            pending=deque(spans),
        )
        if self._workers:
            try:
                self._run(batch)
            except BaseException:
                # a worker that still runs a call would answer the next batch with it
                self.close()
                raise
        else:
            while batch.pending:
                span = batch.pending.popleft()
                batch.take(span, attempt(self._function, batch.slice(span)))
        return batch.result()

    def check_columns(self, columns: Collection[str]) -> None:
        """Check that the function can take columns of data; raises as `check_columns` does."""
        check_columns(self._function, columns)

    def close(self) -> None:
        """End the workers; another `score` starts new ones."""
        _stop_all(self._workers)

    def __enter__(self) -> Self:
        """Nothing to set up."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the workers."""
        self.close()

    def _arguments(
        self,
        prompts: Sequence[object],
        completions: Sequence[base.Completion],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Sequence[object]],
    ) -> Arguments:
        check_columns(self._function, columns)
        arguments = dict(columns) | dict(
            zip(_RESERVED, (prompts, completions, completion_ids), strict=True)
        )
        for name, column in arguments.items():
            if len(column) != len(completions):
                raise RewardError(
                    f"{name} has {len(column)} entries, expected {len(completions)}: "
                    "one for each completion"
                )
        return arguments

    def _run(self, batch: _Batch) -> None:
        """Keep the workers busy until nothing is pending."""
        calls: dict[int, _Call] = {}
        while batch.pending or calls:
            for i in range(len(self._workers)):
                if batch.pending and i not in calls:
                    calls[i] = self._start_call(i, batch)
            for i in _answered(calls):
                call = calls.pop(i)
                batch.take(call.span, call.worker.receive())
            for i in [i for i, call in calls.items() if call.deadline <= time.monotonic()]:
                call = calls.pop(i)
                call.worker.kill()
                batch.time_out(call.span)

    def _start_call(self, index: int, batch: _Batch) -> _Call:
        worker = self._workers[index]
        if worker is None or worker.is_stopped:
            worker = self._workers[index] = Worker(self._packed)
        worker.wait_ready()
        span = batch.pending.popleft()
        worker.send(batch.slice(span))
        return _Call(worker=worker, span=span, deadline=time.monotonic() + self._timeout_s)


def _answered(calls: Mapping[int, _Call]) -> list[int]:
    """Workers that answered, after waiting for the first of them or for a time limit."""
    if not calls:
        return []
    patience = min(call.deadline for call in calls.values()) - time.monotonic()
    by_connection = {call.worker.connection: i for i, call in calls.items()}
    ready = connection.wait(list(by_connection), max(0.0, patience))
    return [i for conn, i in by_connection.items() if conn in ready]


def _split(num_completions: int, num_parts: int) -> list[range]:
    """Contiguous spans that cover all completions, as even as possible, none empty."""
    bounds = [num_completions * part // num_parts for part in range(num_parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(bounds) if a < b]


def check_columns(function: Callable[..., object], columns: Collection[str]) -> None:
    """Check that a reward function can take the columns that there are.

    Args:
        function: A reward function.
        columns: Names of the data's columns beside `prompt`.

    Raises:
        RewardError: A column has a reserved name, the function needs one that is missing, or it
            has no place for one.
    """
    for name in _RESERVED:
        if name in columns:
            raise RewardError(f"a column is named {name}, which is reserved: rename it")
    try:
        signature = inspect.signature(function)
    except ValueError:
        # a builtin without a signature: the call will tell
        return
    try:
        signature.bind(**dict.fromkeys((*_RESERVED, *columns)))
    except TypeError as error:
        present = ", ".join(columns) or "none"
        raise RewardError(
            f"reward function {base.name_of(function)}: {error}; columns of the data: {present}; "
            "take what you do not use as **columns"
        ) from None


def _stop_all(workers: list[Worker | None]) -> None:
    for i, worker in enumerate(workers):
        workers[i] = None
        if worker is not None and not worker.is_stopped:
            worker.stop()
