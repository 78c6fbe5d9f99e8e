"""A process that calls a reward function, and the parent's side of it.

The process is a fresh interpreter that imports no more than the reward function needs; it does not
import the script that is being run. It leads a session of its own, so Ctrl-C does not reach it and
whatever it started dies with it, and it ends when its parent does.
"""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from treepo.errors import RewardError
from treepo.rewards import base
from treepo.rewards.registry import resolve

START_TIMEOUT_S = 120.0
"""Seconds that importing a reward function may take."""

_LEAVE_TIMEOUT_S = 1.0
_BOOT = """\
import sys
from multiprocessing.connection import Connection
from treepo.rewards.worker import serve
serve(Connection(int(sys.argv[1])))
"""

REMEDY = (
    "put it in a module and pass 'package.module:function', "
    "or set num_workers=0 to call it in this process without a time limit"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """A call that returned: one number a completion, NaN where it was not judged."""

    values: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A call that raised, or whose process died, as one line of text."""

    message: str
    is_death: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A function that cannot be used at all, as one line of text."""

    message: str


Reply = Values | Failure | Refusal
Arguments = Mapping[str, Sequence[object]]


def pack_function(reward: str | Callable[..., object]) -> bytes:
    """Turn a reward function into bytes that a worker understands.

    Args:
        reward: A name for `resolve`, or a function of an importable module.

    Returns:
        The pickled name or function.

    Raises:
        RewardError: The function exists in this process only: a lambda, a function inside a
            function or one of the script that is being run.
    """
    if not isinstance(reward, str):
        owner = reward if hasattr(reward, "__qualname__") else type(reward)
        if owner.__module__ == "__main__":
            raise RewardError(
                f"reward function {base.name_of(reward)} belongs to the running script and cannot "
                f"be sent to a worker process, {REMEDY}"
            )
    try:
        return pickle.dumps(reward)
    except (pickle.PicklingError, AttributeError, TypeError):
        raise RewardError(
            f"reward function {base.name_of(reward)} cannot be sent to a worker process, {REMEDY}"
        ) from None


def attempt(function: Callable[..., object], arguments: Arguments) -> Reply:
    """Call a reward function and turn whatever happens into a reply."""
    try:
        return Values(values=base.call(function, arguments))
    except RewardError as error:
        return Refusal(message=str(error))
    except (Exception, SystemExit) as error:
        return Failure(message=f"{type(error).__name__}: {error}")


class Worker:
    """The parent's side: one process, at most one call at a time."""

    def __init__(self, function: bytes) -> None:
        """Start the process; `wait_ready` says when it can be called.

        Args:
            function: What `pack_function` gave.
        """
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        ours, theirs = socket.socketpair()
        with theirs:
            self.connection = Connection(ours.detach())
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # what the function prints must not get between the lines of the parent's output
                stdout=2,
                env=environment,
                start_new_session=True,
            )
        self._function = function
        self._is_ready = False

    def wait_ready(self) -> None:
        """Wait until the function is imported.

        Raises:
            RewardError: It cannot be imported, or not within `START_TIMEOUT_S`.
        """
        if self._is_ready:
            return
        try:
            self.connection.send_bytes(self._function)
            if not self.connection.poll(START_TIMEOUT_S):
                raise RewardError(
                    f"a reward worker did not start within {START_TIMEOUT_S:.0f} s: "
                    "importing the reward function takes too long"
                )
            reply = self.connection.recv()
        except (EOFError, OSError):
            raise RewardError(
                f"a reward worker died while it started, exit code {self.stop()}, {REMEDY}"
            ) from None
        if isinstance(reply, Refusal):
            raise RewardError(reply.message)
        self._is_ready = True

    def send(self, arguments: Arguments) -> None:
        """Start a call.

        Raises:
            RewardError: The arguments cannot be pickled.
        """
        try:
            message = pickle.dumps(arguments)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RewardError(f"columns cannot be sent to a reward worker: {error}") from error
        # a process that died is found out by receive
        with contextlib.suppress(OSError):
            self.connection.send_bytes(message)

    def receive(self) -> Reply:
        """The result of the call; blocks until there is one."""
        try:
            reply: Reply = self.connection.recv()
        except (EOFError, OSError):
            message = f"the worker process died, exit code {self.stop()}"
            return Failure(message=message, is_death=True)
        return reply

    @property
    def is_stopped(self) -> bool:
        """Whether the process cannot take another call."""
        return self.connection.closed

    def stop(self) -> int:
        """Hang up and give the process a moment to leave before it is killed.

        Returns:
            Its exit code; negative for a signal.
        """
        self.connection.close()
        try:
            return self._process.wait(_LEAVE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End the process and all that it started.

        Returns:
            Its exit code; negative for a signal.
        """
        self.connection.close()
        if self._process.returncode is None:
            # not reaped yet, so the number still is that of its process group
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _load(function: bytes) -> Callable[..., object]:
    loaded = pickle.loads(function)
    called: Callable[..., object] = resolve(loaded) if isinstance(loaded, str) else loaded
    prepare = getattr(called, "prepare", None)
    if prepare is not None:
        prepare()
    return called


def serve(connection: Connection) -> None:
    """The process: load the function, then answer calls until the parent hangs up."""
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    try:
        function = _load(connection.recv_bytes())
    except RewardError as error:
        connection.send(Refusal(message=str(error)))
        return
    except Exception as error:
        message = f"the reward function cannot be loaded in a worker process: {error}, {REMEDY}"
        connection.send(Refusal(message=message))
        return
    connection.send(Values(values=[]))
    with contextlib.suppress(EOFError):
        while True:
            connection.send(_answer(function, connection.recv_bytes()))


def _answer(function: Callable[..., object], message: bytes) -> Reply:
    try:
        arguments = pickle.loads(message)
    except Exception as error:
        return Refusal(
            message=f"the columns cannot be read in a reward worker: {error}; use plain values, or "
            f"set num_workers=0 to call the function in this process without a time limit"
        )
    return attempt(function, arguments)
