"""What the commands share: config options, data and models."""

import argparse
import ast
import importlib.util
import inspect
import json
import os
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

from treepo.config import EngineConfig, TrainConfig
from treepo.config.schema import attribute, field_types, is_section
from treepo.errors import CheckpointError, InvalidConfigError
from treepo.prompts import load_jsonl
from treepo.rewards import check_columns, resolve

_TRAIN_PACKAGES = ("torch", "transformers", "safetensors", "yaml", "tqdm")
_KEY_COLUMNS = 38
_SHORT = {
    "model": "model.path",
    "data": "data.train",
    "reward": "reward.name",
    "run_dir": "output_dir",
}
_HELD_OUT_SEED = 1 << 32
"""Added to seeds of evaluation items, which training never has."""


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, `--model` and the list of all config keys to a parser."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of config keys")
    parser.add_argument("--model", metavar="PATH", help="Hugging Face folder (model.path)")
    keys = describe(TrainConfig(), TrainConfig.for_model("PATH"))
    parser.epilog = f"config keys, set with key=value or --key value:\n{keys}"


def add_reward_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--reward` to a parser."""
    parser.add_argument("--reward", metavar="NAME", help="reward function (reward.name)")


def load_config(arguments: argparse.Namespace, overrides: Sequence[str]) -> TrainConfig:
    """Build the config from a file, short options and dotted overrides; the latter win."""
    short = {name: getattr(arguments, name, None) for name in _SHORT}
    for name, value in short.items():
        if value == "":
            # What a shell makes of a variable that is not set; the default would be another model.
            raise InvalidConfigError(f"--{name.removesuffix('_dir')} is empty; give it a value")
    given = [f"{_SHORT[name]}={value}" for name, value in short.items() if value is not None]
    words = [*given, *overrides]
    if arguments.config is None:
        return TrainConfig.load(overrides=words)
    return TrainConfig.from_yaml(arguments.config, words)


def describe(config: Any, for_model: Any, prefix: str = "") -> str:
    """Return one line a config key.

    Args:
        config: The defaults.
        for_model: The defaults for a model of the user's; where they differ, they are named.
        prefix: Dotted name of the section with its dot, "" at the top.

    Returns:
        For each key its default, the first sentence about it, and its choices if it has any.
    """
    about = documentation(type(config))
    lines: list[str] = []
    for name, annotation in field_types(type(config)).items():
        value, other = (getattr(x, attribute(name)) for x in (config, for_model))
        if is_section(annotation):
            lines.append(describe(value, other, f"{prefix}{name}."))
            continue
        notes = [about.get(attribute(name), "")]
        if isinstance(value, Enum):
            notes.append(f"one of {', '.join(str(x.value) for x in type(value))}")
        if other != value and name != "path":
            notes.append(f"with --model: {_shown(other)}")
        lines.append(f"  {f'{prefix}{name}={_shown(value)}':{_KEY_COLUMNS}} {'; '.join(notes)}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """Return a value as a command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return json.dumps(value)
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(getattr(value, "value", value))


def documentation(cls: type) -> dict[str, str]:
    """Return the first sentence of the text under each field of a dataclass, by field name."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0]
    found: dict[str, str] = {}
    for field, text in pairwise(body.body if isinstance(body, ast.ClassDef) else []):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            words = " ".join(str(text.value.value).split())
            found[field.target.id] = words.partition(". ")[0].rstrip(".")
    return found


def require_packages() -> None:
    """Check that the packages of the extra [train] are there.

    Raises:
        InvalidConfigError: One is missing.
    """
    missing = [name for name in _TRAIN_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidConfigError(
            f"this command needs {', '.join(missing)}; run: pip install '.[train]' in the folder "
            "of treepo's source"
        )


def model_path(config: TrainConfig, saved: Path | None = None) -> str:
    """Return the model's folder or hub name; a folder never makes transformers ask the hub.

    Args:
        config: Names the model.
        saved: A checkpoint that takes its place, None for none.

    Raises:
        CheckpointError: A local folder is meant that does not exist.
    """
    from treepo.tasks import embedded

    path = str(saved or config.model.path or embedded.MODEL_PATH)
    is_no_hub_name = path.startswith(("/", ".", "~")) or path.count("/") > 1
    has_parent = "/" in path and Path(path).parent.is_dir()
    if not Path(path).is_dir() and (is_no_hub_name or has_parent):
        # Asking the hub for what is plainly a local folder takes half a minute of retries.
        raise CheckpointError(f"there is no folder {path}; give one with a Hugging Face model")
    if Path(path).is_dir():
        # Has to be set before transformers is imported for the first time.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return path


def load_model(path: str, config: EngineConfig) -> tuple[Any, Any]:
    """Return model and tokenizer of a folder, without transformers' progress bars."""
    from transformers.utils import logging as transformers_logging

    from treepo.engine.load import load_model as load

    logging: Any = transformers_logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    check_device(config.device)
    return load(path, config)


def check_device(device: str) -> None:
    """Check that torch has a device.

    Raises:
        InvalidConfigError: It has not.
    """
    import torch

    try:
        if device == "cuda" and "LOCAL_RANK" in os.environ:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # torchrun's: a device each.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise InvalidConfigError(f"engine.device '{device}' cannot be used: {reason}") from None


def output_file(name: str) -> Path:
    """Return the path of a file to write at the end; its folder is made.

    Raises:
        InvalidConfigError: It cannot be written, which is better found before the work.
    """
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        if not is_new and not path.is_file():
            raise InvalidConfigError(f"cannot write {path}: it is not a file; name one with --out")
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise InvalidConfigError(
            f"cannot write {path}: {error.strerror}; name another file with --out"
        ) from None
    return path


def train_rows(config: TrainConfig) -> Sequence[Any]:
    """Return the rows to train on: reasoning-gym's, the file's, or the embedded task's."""
    from treepo.tasks import embedded
    from treepo.tasks.gym import gym_rows

    if config.data.gym.task is not None:
        return gym_rows(config.data.gym, config.seed, config.data.gym.size)
    if config.data.train is not None:
        return load_jsonl(config.data.train)
    return embedded.train_examples(seed=config.seed)


def eval_rows(config: TrainConfig) -> Sequence[Any] | None:
    """Return the held-out rows: reasoning-gym's, the file's, the embedded task's, or None."""
    from treepo.tasks import embedded
    from treepo.tasks.gym import gym_rows

    if config.eval.num_prompts == 0:
        return None
    if config.data.gym.task is not None:
        return gym_rows(config.data.gym, _HELD_OUT_SEED + config.eval.seed, config.eval.num_prompts)
    if config.data.eval is not None:
        return load_jsonl(config.data.eval)
    if config.data.train is not None:
        return None
    return embedded.heldout_examples(config.eval.num_prompts)


def reward_name(config: TrainConfig) -> str:
    """Return the reward's name: the config's, or what suits the data."""
    from treepo.tasks import embedded

    if config.reward.name is not None:
        return config.reward.name
    if config.data.gym.task is not None:
        return "gym"
    is_embedded = config.data.train is None and config.data.eval is None
    return embedded.REWARD if is_embedded else "exact_match"


def check_reward(config: TrainConfig, rows: Sequence[Any]) -> None:
    """Check that the reward exists and takes the columns of the data.

    Raises:
        RewardError: It does not, which is better found before a model is loaded.
    """
    # Rows of a file have the same columns, and so have those of the embedded task.
    names = [name for name in rows[0] if name != "prompt"]
    check_columns(resolve(reward_name(config)), names)


def set_threads(config: TrainConfig) -> None:
    """Apply `num_threads`."""
    import torch

    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
