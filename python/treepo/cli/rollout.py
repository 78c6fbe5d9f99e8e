"""`treepo rollout`: sample trees, show one, save all."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treepo.cli import EXIT_OK, options
from treepo.cli.picture import picture
from treepo.cli.report import counted
from treepo.config import TrainConfig
from treepo.config.overrides import nested
from treepo.config.schema import flat
from treepo.errors import DataError, InvalidConfigError, RewardError
from treepo.forest import Forest
from treepo.prompts import load_jsonl


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    options.add_config_arguments(parser)
    options.add_reward_argument(parser)
    parser.add_argument(
        "--prompts", metavar="FILE", help="JSON lines with 'prompt'; - is standard input"
    )
    parser.add_argument("--out", metavar="FILE", help="where the forest goes (safetensors)")
    parser.add_argument(
        "--num-prompts", type=int, default=4, metavar="N", help="prompts used, from the first (4)"
    )
    parser.add_argument("--show", type=int, default=0, metavar="I", help="tree to draw (0)")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Sample trees; returns the exit code."""
    options.require_packages()
    config = options.load_config(arguments, overrides)
    if arguments.num_prompts < 1:
        raise InvalidConfigError(f"--num-prompts must be at least 1, got {arguments.num_prompts}")
    has_data = config.data.train is not None or config.data.gym.task is not None
    if arguments.prompts is None and config.model.path is not None and not has_data:
        raise InvalidConfigError("--model needs --prompts FILE, JSON lines with a 'prompt'")
    rows = list(_rows(arguments.prompts, config)[: arguments.num_prompts])
    if not 0 <= arguments.show < len(rows):
        raise InvalidConfigError(f"--show must be in 0..{len(rows) - 1}, got {arguments.show}")
    is_asked = arguments.reward is not None or "reward.name" in flat(nested(TrainConfig, overrides))
    reward = _reward(config, rows, is_asked=is_asked)
    out = options.output_file(
        arguments.out or time.strftime("runs/forest-%Y%m%d-%H%M%S.safetensors")
    )
    path = options.model_path(config)
    options.set_threads(config)
    from treepo.engine import Engine

    model, tokenizer = options.load_model(path, config.engine)
    engine = Engine(model, tokenizer, config.engine)
    forest = engine.rollout(
        [row["prompt"] for row in rows], config.search, config.sampling, seed=config.seed
    )
    _save(forest, out)
    if reward is not None:
        from treepo.scoring import Scorer, require_some

        with Scorer(reward, config.reward, tokenizer, engine.eos_token_ids) as scorer:
            scores = scorer.score(forest, rows)
        require_some([scores])
        forest.set_rewards(scores.values)
        _save(forest, out)
    print(picture(forest, arguments.show, tokenizer))
    print(
        f"\n{counted(forest.num_trees, 'tree')}, "
        f"{counted(forest.num_paths, 'trajectory', 'trajectories')}, "
        f"{counted(forest.num_completion_tokens, 'completion token')}, "
        f"{forest.num_unique_completion_tokens} of them decoded, "
        f"share ratio {forest.share_ratio:.2f}; {engine.stats.seconds:.1f} s"
    )
    print(f"saved: {out}")
    return EXIT_OK


def _reward(config: TrainConfig, rows: Sequence[Any], *, is_asked: bool) -> str | None:
    """Return what scores the trees; a file's reward does not if the prompts have no answers."""
    if config.reward.name is None:
        return None
    try:
        options.check_reward(config, rows)
    except RewardError as error:
        if is_asked:
            raise
        print(f"trees are not scored: {error}", file=sys.stderr)
        return None
    return config.reward.name


def _save(forest: Forest, out: Path) -> None:
    from safetensors import SafetensorError

    try:
        forest.save(out)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write {out}: {error}") from None


def _rows(prompts: str | None, config: TrainConfig) -> Sequence[Any]:
    if prompts is None:
        return options.train_rows(config)
    return load_jsonl("/dev/stdin" if prompts == "-" else prompts)
