"""Ctrl-C and SIGTERM: stop at the next safe point instead of in the middle of something."""

import contextlib
import os
import signal
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2
_NOTICE = b"\nstopping with a checkpoint; once more stops at once\n"


class StepAbandonedError(Exception):
    """A step was given up before it changed anything."""


class TrainingInterrupted(KeyboardInterrupt):
    """The run stopped early, on request, with a checkpoint.

    Attributes:
        run_dir: Folder of the run.
        step: Finished steps.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        super().__init__(f"interrupted after step {step}; the run is in {run_dir}")
        self.run_dir = run_dir
        self.step = step


class Interruption:
    """While entered, the first signal is remembered and the second one interrupts at once."""

    def __init__(self) -> None:
        """Start without a request."""
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.requested = False
        # Only the main thread may install handlers; elsewhere Ctrl-C keeps its usual meaning.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def check(self, *_: object) -> None:
        """Raise StepAbandonedError when a stop was requested; usable as a callback."""
        if self.requested:
            raise StepAbandonedError

    def _remember(self, *_: object) -> None:
        self.requested = True
        self._restore()
        # Not print: the signal may have come in the middle of one, which must not be entered twice.
        with contextlib.suppress(OSError):
            os.write(_STDERR, _NOTICE)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
