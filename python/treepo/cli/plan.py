"""`treepo plan`: what a search will cost and share, before anything runs."""

import argparse
import json
from collections.abc import Sequence

from treepo import core
from treepo.cli import EXIT_OK, options
from treepo.cli.plan_report import Plan, Preset, report
from treepo.cli.shapes import ModelShape, model_shape
from treepo.config import SearchConfig, StopConfig, TrainConfig
from treepo.config.schema import MAX_COUNT, flat
from treepo.errors import InvalidConfigError

_RATES = "0.1"
_PROMPT_LEN = 64
_GIB = 1 << 30
_RATES_HELP = f"""\
probabilities that a segment ends its path (end of sequence, text, repetition), by
depth: first segments, second ones, and so on; the last one repeats ({_RATES}). Take
them from a forest of yours: of the paths that reach a depth, the part that ends there"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    options.add_config_arguments(parser)
    parser.usage = "treepo plan [CONFIG] [key=value ...] [options]"
    parser.description = (
        "print what a search will decode and return a tree, before anything runs;\n"
        "CONFIG is a YAML file of config keys, as after --config"
    )
    parser.add_argument("--rates", metavar="R,R,..", default=_RATES, help=_RATES_HELP)
    parser.add_argument(
        "--prompt-len",
        type=int,
        metavar="N",
        help=f"tokens of a prompt ({_PROMPT_LEN}; the embedded task's without a model)",
    )
    parser.add_argument(
        "--trees",
        type=int,
        metavar="N",
        help="prompts sampled at once (prompts_per_step); means are over these trees",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--presets", action="store_true", help="list the presets and stop")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Plan; returns the exit code."""
    if arguments.presets:
        _print_presets(overrides, as_json=arguments.json)
        return EXIT_OK
    config = options.load_config(arguments, _without_file(arguments, overrides))
    plan = _plan(arguments, config)
    print(json.dumps(plan.to_dict()) if arguments.json else report(plan))
    return EXIT_OK


def _without_file(arguments: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    """Take a file's name from the front of the words; they are dotted overrides then."""
    first, rest = (overrides[0], overrides[1:]) if overrides else ("", ())
    if not first or "=" in first or first.startswith("--"):
        return list(overrides)
    if arguments.config is not None:
        raise InvalidConfigError(f"there are two config files, {arguments.config} and {first}")
    arguments.config = first
    return list(rest)


def _plan(arguments: argparse.Namespace, config: TrainConfig) -> Plan:
    prompt_len = _prompt_len(arguments.prompt_len, config)
    shape = _shape(config, prompt_len)
    num_trees = config.prompts_per_step if arguments.trees is None else arguments.trees
    for name, value in (("--prompt-len", prompt_len), ("--trees", num_trees)):
        if not 1 <= value <= MAX_COUNT:
            raise InvalidConfigError(f"{name} must be from 1 to {MAX_COUNT}, got {value}")
    rates = _rates(arguments.rates)
    max_model_len = _max_model_len(config, shape)
    search = config.search.to_core((), max_model_len)
    # The forecast's tokens are no text: what stops paths is in the rates.
    without_texts = config.search.replace(stop=StopConfig()).to_core((), max_model_len)
    forecast = core.forecast(
        without_texts,
        rates=rates,
        prompt_len=prompt_len,
        num_trees=num_trees,
        num_blocks=_num_blocks(config, shape),
        block_size=config.engine.block_size,
        max_num_seqs=config.engine.max_num_seqs,
        max_num_batched_tokens=config.engine.max_num_batched_tokens,
        admission_percent=config.engine.admission_percent,
        age_bias=config.engine.age_bias,
        seed=config.seed,
    )
    bytes_per_token = None if shape is None else shape.bytes_per_token(config.engine.pool_dtype)
    return Plan(
        search=config.search,
        engine=config.engine,
        rates=rates,
        prompt_len=prompt_len,
        num_trees=num_trees,
        forecast=forecast,
        policies=search.policies(),
        dependence=search.dependence,
        preset=_preset(config.search),
        bytes_per_token=bytes_per_token,
        max_model_len=max_model_len,
    )


def _shape(config: TrainConfig, prompt_len: int) -> ModelShape | None:
    """Return the model's sizes; None if no model is named and the embedded one is too short."""
    shape = model_shape(options.model_path(config))
    needed = prompt_len + config.search.completion_len
    is_short = shape is not None and needed > (shape.max_model_len or needed)
    return None if is_short and config.model.path is None else shape


def _prompt_len(given: int | None, config: TrainConfig) -> int:
    if given is not None:
        return given
    if config.model.path is not None or config.data.train is not None:
        return _PROMPT_LEN
    from treepo.tasks import embedded

    # The embedded tokenizer has one token a character.
    return len(embedded.heldout_examples(1)[0]["prompt"])


def _rates(text: str) -> list[float]:
    try:
        rates = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        rates = []
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise InvalidConfigError(f"--rates must be numbers from 0 to 1, like 0.1,0.2, got '{text}'")
    return rates


def _max_model_len(config: TrainConfig, shape: ModelShape | None) -> int:
    own = None if shape is None else shape.max_model_len
    known = [value for value in (config.engine.max_model_len, own) if value is not None]
    return min(known, default=MAX_COUNT)


def _num_blocks(config: TrainConfig, shape: ModelShape | None) -> int | None:
    """Return the pool's size where the config gives it; else the forecast has room for all."""
    engine = config.engine
    if engine.num_blocks is not None or engine.kv_cache_gib is None or shape is None:
        return engine.num_blocks
    return max(
        2,
        int(engine.kv_cache_gib * _GIB)
        // (shape.bytes_per_token(engine.pool_dtype) * engine.block_size),
    )


def _preset(search: SearchConfig) -> Preset | None:
    """Return the preset that a search starts from and the keys that override it."""
    if search.preset is None:
        return None
    source = dict(core.SearchConfig.presets())[search.preset]
    plain, own = (flat(x.to_dict()) for x in (SearchConfig(preset=search.preset), search))
    changed = tuple(f"{key}={own[key]}" for key in own if own[key] != plain[key])
    return Preset(name=search.preset, source=source, changed=changed)


def _print_presets(overrides: Sequence[str], *, as_json: bool) -> None:
    if overrides:
        raise InvalidConfigError(f"--presets takes nothing else, got '{overrides[0]}'")
    presets = core.SearchConfig.presets()
    if as_json:
        print(json.dumps(dict(presets)))
        return
    width = max(len(name) for name, _ in presets)
    for name, source in presets:
        print(f"{name:{width}}  {source}")
