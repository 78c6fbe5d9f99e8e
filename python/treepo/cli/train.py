"""`treepo train`: the main job, from a model and prompts to a better model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from treepo.advantages import find_preset
from treepo.cli import EXIT_INTERRUPTED, EXIT_OK, options
from treepo.cli.report import before_after, counted
from treepo.config import TrainConfig
from treepo.config.run import CONFIG_FILE
from treepo.errors import CheckpointError, InvalidConfigError

if TYPE_CHECKING:
    from treepo.train.trainer import Trainer, TrainResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    options.add_config_arguments(parser)
    options.add_reward_argument(parser)
    parser.add_argument("--data", metavar="FILE", help="JSON lines with 'prompt' (data.train)")
    parser.add_argument(
        "--run", metavar="DIR", dest="run_dir", help="folder of the run (output_dir)"
    )
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this folder")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train; returns the exit code."""
    options.require_packages()
    config = _config(arguments, overrides)
    config.require_trainable()
    find_preset(config.advantage.preset)
    from treepo.train.interrupt import TrainingInterrupted

    try:
        result = _train(config, is_resumed=arguments.resume is not None)
    except TrainingInterrupted as interruption:
        print(
            f"interrupted after step {interruption.step} of {config.num_steps}; continue with: "
            f"treepo train --resume {interruption.run_dir}",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    if result is not None:
        print(_summary(result, config))
    return EXIT_OK


def _train(config: TrainConfig, *, is_resumed: bool) -> "TrainResult | None":
    """Train; None in a process that another one speaks for."""
    from treepo.train import checkpoint

    saved = checkpoint.latest(Path(config.output_dir or "")) if is_resumed else None
    trainer = _trainer(config, saved)
    result = trainer.train(resume=is_resumed)
    return result if trainer.is_first else None


def _config(arguments: argparse.Namespace, overrides: Sequence[str]) -> TrainConfig:
    if arguments.resume is None:
        return options.load_config(arguments, overrides)
    for name in ("config", "model", "data", "reward", "run_dir"):
        if getattr(arguments, name) is not None:
            option = name.removesuffix("_dir")
            raise InvalidConfigError(
                f"--{option} cannot be changed by --resume; the run goes on with its own config"
            )
    run_dir = Path(arguments.resume)
    if not (run_dir / CONFIG_FILE).is_file():
        raise CheckpointError(f"{run_dir} is not a run: it has no {CONFIG_FILE}")
    config = TrainConfig.from_yaml(run_dir / CONFIG_FILE, overrides)
    before = TrainConfig.from_yaml(run_dir / CONFIG_FILE)
    if config.output_dir != before.output_dir:
        raise InvalidConfigError(
            f"output_dir={config.output_dir} and --resume {run_dir} name two folders; "
            "leave output_dir out"
        )
    if config.model.path != before.model.path and not config.needs_first_weights:
        raise InvalidConfigError(
            f"model.path={config.model.path}: a resumed run goes on with the weights of its "
            "checkpoint; leave model.path out"
        )
    return config.replace(output_dir=str(run_dir))


def _trainer(config: TrainConfig, saved: Path | None) -> "Trainer":
    """Read data before the model: a mistake there is found at once.

    The original model folder may be gone; the checkpoint `saved` is a model folder too, unless
    the run needs the first weights.
    """
    rows = options.train_rows(config)
    held_out = options.eval_rows(config)
    options.check_reward(config, rows)
    if held_out is not None:
        options.check_reward(config, held_out)
    path = options.model_path(config, None if config.needs_first_weights else saved)
    options.set_threads(config)
    from treepo.train import checkpoint
    from treepo.train.progress import tell
    from treepo.train.trainer import Trainer

    if config.model.path is not None and config.data.train is None and config.data.gym.task is None:
        tell("no data is named: training on the embedded task, multiplication (--data FILE)")

    try:
        model, tokenizer = options.load_model(path, config.engine)
    except CheckpointError as error:
        raise error if saved is None else checkpoint.damaged(saved, error) from None
    return Trainer(model, tokenizer, options.reward_name(config), rows, held_out, config)


def _next_command(model: Path | None, result: "TrainResult", config: TrainConfig) -> str:
    """Return what evaluates the model on the run's held-out prompts, or samples from it."""
    data = config.data
    if data.gym.task is not None or data.eval is not None:
        return f"treepo eval --model {model} --config {result.run_dir / CONFIG_FILE}"
    if data.train is not None:
        return f"treepo rollout --model {model} --prompts {data.train}"
    return f"treepo eval --model {model}"


def _summary(result: "TrainResult", config: TrainConfig) -> str:
    from treepo.train import checkpoint

    final = checkpoint.latest(result.run_dir)
    lines = [
        f"{counted(result.num_steps, 'step')}, {counted(result.num_tokens, 'token')} sampled, "
        f"{result.seconds:.0f} s",
        f"run:   {result.run_dir}",
        f"model: {final}",
        f"next:  {_next_command(final, result, config)}",
    ]
    if result.before is not None and result.after is not None:
        lines = [before_after(result.before, result.after), "", *lines]
    return "\n".join(lines)
