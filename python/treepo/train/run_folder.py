"""The folder of a run: what it was started with, what it measured, where it can go on."""

import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from treepo import core
from treepo.config import TrainConfig
from treepo.config.run import CONFIG_FILE
from treepo.errors import CheckpointError, InvalidConfigError
from treepo.evaluate import Evaluation
from treepo.forest import Forest
from treepo.train.inputs import RunInputs
from treepo.train.metrics import MetricsLog
from treepo.train.progress import tell

_RESULTS = ("metrics.jsonl", "checkpoints", "eval")
_ENVIRONMENT_FILE = "env.json"
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "safetensors")


class RunFolder:
    """Paths and files of one run.

    Attributes:
        path: The folder.
        log: Its `metrics.jsonl`.
    """

    def __init__(self, path: Path) -> None:
        """Name the folder; use `create` or `open`."""
        self.path = path
        self.log = MetricsLog(path / "metrics.jsonl")

    @classmethod
    def create(cls, config: TrainConfig) -> "RunFolder":
        """Make the folder of a new run.

        A folder of a run that failed before it measured anything is taken over.

        Raises:
            InvalidConfigError: The folder holds a run already, or a config that no run wrote, or
                cannot be made.
        """
        path = Path(config.output_dir) if config.output_dir else _fresh_path()
        if any((path / name).exists() for name in _RESULTS):
            raise InvalidConfigError(
                f"output_dir {path} holds a run already; continue it with --resume {path} or "
                "choose another folder"
            )
        if (path / CONFIG_FILE).exists() and not (path / _ENVIRONMENT_FILE).exists():
            raise InvalidConfigError(
                f"output_dir {path} holds a {CONFIG_FILE} that no run wrote and this one would "
                "replace; choose another folder"
            )
        return cls(path)

    @classmethod
    def open(cls, config: TrainConfig) -> "RunFolder":
        """Open the folder `config.output_dir` of an earlier run to continue it.

        Raises:
            CheckpointError: There is no run.
        """
        path = Path(config.output_dir or "")
        read_config(path)
        return cls(path)

    def check_inputs(self, inputs: RunInputs) -> None:
        """Refuse to continue the run with other prompts or rewards than its latest start had.

        Raises:
            InvalidConfigError: They are others.
        """
        before = [start["inputs"] for start in self._starts() if "inputs" in start]
        if before:
            inputs.require_same(before[-1], self.path)

    def write_start(self, config: TrainConfig, inputs: RunInputs) -> None:
        """Write config, environment and inputs, once the run is known to be able to go on.

        The environment of an earlier start stays beside that of a resumed run.

        Raises:
            InvalidConfigError: The folder cannot be written.
        """
        try:
            starts = [*self._starts(), {**environment(), "inputs": inputs.to_dict()}]
            self.write_text(_ENVIRONMENT_FILE, json.dumps(starts, indent=2) + "\n")
            self.write_text(CONFIG_FILE, config.replace(output_dir=str(self.path)).to_yaml())
        except OSError as error:
            raise InvalidConfigError(
                f"cannot write the run's folder output_dir={self.path}: {error.strerror}; "
                "choose another one"
            ) from None
        tell(f"run: {self.path}")

    def _starts(self) -> list[dict[str, Any]]:
        """Return the environments of the run's earlier starts."""
        try:
            found = json.loads((self.path / _ENVIRONMENT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [start for start in found if isinstance(start, dict)]

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run; a reader sees the old one or the new one, nothing between."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        writing = target.with_name(f".writing_{target.name}")
        writing.write_text(text, encoding="utf-8")
        writing.replace(target)

    def save_evaluation(self, name: str, evaluation: Evaluation) -> None:
        """Write `eval/<name>.json`."""
        self.write_text(f"eval/{name}.json", json.dumps(evaluation.to_dict(), indent=2) + "\n")

    def load_evaluation(self, name: str) -> Evaluation | None:
        """Read `eval/<name>.json`; None if it was not written.

        Raises:
            CheckpointError: The file is damaged.
        """
        file = self.path / "eval" / f"{name}.json"
        if not file.exists():
            return None
        try:
            return Evaluation.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file} is damaged ({error}); delete it to evaluate again"
            ) from None

    def truncate(self, step: int, *, is_finished: bool) -> None:
        """Drop what was measured after a step, because the run is at that step again.

        Args:
            step: Step of the weights that the run goes on with.
            is_finished: Whether they are the last ones, whose evaluation stays.
        """
        self.log.truncate(step)
        for file in (self.path / "eval").glob("*.json"):
            number = file.stem.removeprefix("step_")
            is_later = number.isdigit() and int(number) > step
            if is_later or (file.stem == "after" and not is_finished):
                file.unlink()

    def save_forest(self, step: int, forest: Forest) -> None:
        """Write `forests/step_N.safetensors`.

        Raises:
            CheckpointError: It cannot be written.
        """
        file = self.path / "forests" / f"step_{step}.safetensors"
        try:
            file.parent.mkdir(exist_ok=True)
            forest.save(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot write {file}: {error}") from None


class SilentRunFolder(RunFolder):
    """The folder of a run whose files another process writes."""

    def check_inputs(self, inputs: RunInputs) -> None:
        """Check nothing: the other process does."""

    def write_start(self, config: TrainConfig, inputs: RunInputs) -> None:
        """Write nothing."""

    def write_text(self, name: str, text: str) -> None:
        """Write nothing."""

    def load_evaluation(self, name: str) -> Evaluation | None:
        """Return None: the other process evaluates."""

    def truncate(self, step: int, *, is_finished: bool) -> None:
        """Drop nothing."""

    def save_forest(self, step: int, forest: Forest) -> None:
        """Write nothing."""


def read_config(path: Path) -> dict[str, Any]:
    """Return the config that a run was started with, as nested dictionaries.

    Raises:
        CheckpointError: The folder is no run.
    """
    from treepo.config.text import load_yaml

    if not (path / CONFIG_FILE).is_file():
        raise CheckpointError(f"{path} is not a run: it has no {CONFIG_FILE}")
    return load_yaml(path / CONFIG_FILE)


def environment() -> dict[str, Any]:
    """Return versions, machine, threads and command of this process."""
    return {
        "treepo": core.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _fresh_path() -> Path:
    stem = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    path, number = stem, 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}-{number}")
    return path
