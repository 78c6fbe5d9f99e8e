"""`treepo eval`: accuracy of a model on prompts with known answers."""

import argparse
from collections.abc import Sequence
from contextlib import closing

from treepo.cli import EXIT_OK, options
from treepo.cli.report import single
from treepo.config import TrainConfig
from treepo.config.overrides import nested
from treepo.config.schema import flat
from treepo.errors import InvalidConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    options.add_config_arguments(parser)
    options.add_reward_argument(parser)
    parser.add_argument("--data", metavar="FILE", dest="eval_data", help="JSON lines (data.eval)")
    parser.add_argument("--out", metavar="FILE", help="where the numbers go (JSON)")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Evaluate; returns the exit code."""
    options.require_packages()
    words = list(overrides)
    if arguments.eval_data == "":
        raise InvalidConfigError("--data is empty; give it a value")
    _require_own_keys(overrides)
    if arguments.eval_data is not None:
        words.insert(0, f"data.eval={arguments.eval_data}")
    config = options.load_config(arguments, words)
    rows = options.eval_rows(config)
    if rows is None:
        missing = "set eval.num_prompts above 0" if config.eval.num_prompts == 0 else "give --data"
        raise InvalidConfigError(f"there is nothing to evaluate; {missing}")
    options.check_reward(config, rows)
    if len(rows) > config.eval.num_prompts:
        print(f"the first {config.eval.num_prompts} of {len(rows)} prompts (eval.num_prompts)")
    out = None if arguments.out is None else options.output_file(arguments.out)
    path = options.model_path(config)
    options.set_threads(config)
    import json

    from treepo.engine import Engine
    from treepo.evaluate import evaluate
    from treepo.scoring import Scorer
    from treepo.train.progress import TreeProgress

    model, tokenizer = options.load_model(path, config.engine)
    engine = Engine(model, tokenizer, config.engine)
    name = options.reward_name(config)
    scorer = Scorer(name, config.reward, tokenizer, engine.eos_token_ids)
    with scorer, closing(TreeProgress("evaluation")) as progress:
        result = evaluate(
            engine,
            scorer,
            rows,
            config.eval,
            search=config.search,
            on_step=progress.show,
        )
    print(single(result))
    if out is not None:
        out.write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    return EXIT_OK


def _require_own_keys(overrides: Sequence[str]) -> None:
    """Refuse keys of training on the command line that an evaluation has others for."""
    for key in flat(nested(TrainConfig, overrides)):
        if key == "seed" or key.startswith("sampling."):
            raise InvalidConfigError(
                f"'{key}' is about rollouts of training; an evaluation has eval.temperature, "
                "eval.seed and the whole distribution"
            )
