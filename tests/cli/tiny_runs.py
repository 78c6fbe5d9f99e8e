"""Short runs of a tiny model, for tests of the trainer."""

import json
import signal

import torch

from treepo.config import (
    EngineConfig,
    EvalConfig,
    OptimizerConfig,
    RewardConfig,
    SearchConfig,
    TrainConfig,
)
from treepo.engine.load import load_model
from treepo.train.trainer import Trainer

ROWS = [{"prompt": f"{number}*{number % 7}=", "answer": "1"} for number in range(10, 23)]


def count_ones(completions, **columns):
    return [text.count("1") / 4 for text in completions]


def config(folder, **changes):
    values = {
        "search": SearchConfig(width=4, segment_len=4, max_depth=3),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        "reward": RewardConfig(num_workers=0),
        "eval": EvalConfig(num_prompts=2, num_samples=2),
        "num_steps": 4,
        "prompts_per_step": 3,
        "minibatches_per_step": 2,
        "save_every": 1,
        "output_dir": str(folder),
    }
    return TrainConfig(**{**values, **changes})


def trainer(model_dir, config, reward=count_ones):
    model, tokenizer = load_model(str(model_dir), config.engine)
    return Trainer(model, tokenizer, reward, ROWS, ROWS[:2], config)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.engine.model.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class StopAfter:
    """A reward that presses Ctrl-C in the given call."""

    __name__ = "count_ones"  # A run goes on with a reward of the same name only.

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, completions, **columns):
        self.calls -= 1
        if self.calls == 0:
            signal.raise_signal(signal.SIGINT)
        return count_ones(completions)


class BreakAfter:
    """A reward that returns too few values in the given call."""

    __name__ = "count_ones"

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, completions, **columns):
        self.calls -= 1
        return count_ones(completions)[: -1 if self.calls == 0 else None]


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def unfinished(folder, **changes):
    search = SearchConfig(width=3, segment_len=3, max_depth=9)
    few_rows = EngineConfig(max_num_seqs=7)  # Later trees wait, so that they end later.
    return config(
        folder, search=search, engine=few_rows, max_unfinished_trees=3, num_steps=5, **changes
    )
