"""Contestants of a comparison: a process each, started once, measured in turns.

While one runs the others wait in a blocking read. That they take no CPU is measured, not assumed:
every timed run carries the CPU time that the waiting processes took in it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import environment
from peers.server import Request

BENCHES = environment.REPO / "benches"
# Spinning OpenMP threads stop within this; libiomp5 spins 0.2 s.
SETTLE_S = 0.5
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class ContestantError(RuntimeError):
    """A contestant's process ended; the message has the end of its log."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """How to start a contestant.

    Attributes:
        name: Of the contestant.
        python: Interpreter of its environment.
        module: Its server, run with benches/ on the path.
        arguments: Of the server.
        variables: Environment variables; None removes one.
    """

    name: str
    python: str
    module: str
    arguments: Sequence[str]
    variables: Mapping[str, str | None] = field(default_factory=dict)


class Contestant:
    """A running server.

    Attributes:
        name: Of the contestant.
        versions: What it runs.
        load_s: Seconds until it was ready, compilation included.
    """

    def __init__(self, program: Program) -> None:
        self.name = program.name
        self.log = Path(gettempdir()) / f"treepo-bench-{os.getpid()}-{program.name}.log"
        began = time.perf_counter()
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [program.python, "-m", program.module, *program.arguments],
                env=_variables(program.variables),
                cwd=gettempdir(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.versions: dict[str, str] = self._read()["versions"]
        self.load_s = time.perf_counter() - began

    def ask(self, request: Request) -> dict[str, Any]:
        """Send a request and wait for the reply."""
        assert self._process.stdin is not None
        try:
            print(json.dumps(asdict(request)), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failed() from None
        return self._read()

    def cpu_seconds(self) -> float:
        """CPU time of the process and its descendants so far."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = stat.read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == self._process.pid:  # the session
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / CLOCK_TICKS

    def close(self) -> None:
        """End the process: it leaves when stdin ends, and is stopped if it does not."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failed()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _failed(self) -> ContestantError:
        self._process.wait()
        end = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
        return ContestantError(f"{self.name} ended with {self._process.returncode}:\n{end}")


class Field:
    """All contestants of a comparison; one that fails is left out and its error kept.

    Attributes:
        running: By name, in the order of the turns.
        errors: By name, why a contestant is left out.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        self.running: dict[str, Contestant] = {}
        self.errors: dict[str, str] = {}
        for program in programs:  # One at a time: compilations would take each other's cores.
            try:
                self.running[program.name] = Contestant(program)
            except ContestantError as error:
                self._leave_out(program.name, error)

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_: object) -> None:
        for contestant in self.running.values():
            contestant.close()

    def ask(self, name: str, request: Request) -> dict[str, Any] | None:
        """A timed reply with the CPU time that the others took meanwhile; None if it failed."""
        if name not in self.running:
            return None
        time.sleep(SETTLE_S)
        waiting = {other: x for other, x in self.running.items() if other != name}
        before = {other: x.cpu_seconds() for other, x in waiting.items()}
        began = time.perf_counter()
        try:
            reply = self.running[name].ask(request)
        except ContestantError as error:
            del self.running[name]
            self._leave_out(name, error)
            return None
        seconds = time.perf_counter() - began
        reply["others_cpu_s"] = {
            other: x.cpu_seconds() - before[other] for other, x in waiting.items()
        }
        reply["others_cpu_share"] = sum(reply["others_cpu_s"].values()) / seconds
        return reply

    def described(self) -> dict[str, Any]:
        """What ran, for the result file."""
        return {
            name: {"versions": x.versions, "load_s": x.load_s} for name, x in self.running.items()
        }

    def _leave_out(self, name: str, error: ContestantError) -> None:
        self.errors[name] = str(error)
        print(f"{name} is left out: {error}", flush=True)


def _variables(changes: Mapping[str, str | None]) -> dict[str, str]:
    values = {**os.environ, "PYTHONPATH": str(BENCHES), "HF_HUB_OFFLINE": "1", **changes}
    return {name: value for name, value in values.items() if value is not None}
