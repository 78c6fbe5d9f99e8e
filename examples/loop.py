"""A training loop of one's own: `python examples/loop.py`.

Rollout, rewards, credit, packing, the exact gradient of all trajectories, and any torch optimizer.
`treepo.Trainer` adds resumable runs, evaluation, minibatches, adapters and several processes.
"""

from itertools import islice

import torch

import treepo
from treepo.advantages import credit
from treepo.config import LossConfig
from treepo.tasks import embedded
from treepo.tasks.multiplication import product_reward
from treepo.train import TokenAdvantages, TrainStep, microbatches
from treepo.train.pack import pack

NUM_STEPS = 3
PROMPTS_PER_STEP = 8
TEMPERATURE = 1.0
MAX_TOKENS = 4096
LEARNING_RATE = 2.7e-5


def rewards_of(engine: treepo.Engine, forest: treepo.Forest, rows: list) -> list[float]:
    """One reward a trajectory, in the order of `forest.paths`."""
    ids = [forest.completion_ids(path).tolist() for path in range(forest.num_paths)]
    own = [rows[tree] for tree in forest.paths.tree]
    return product_reward(
        prompts=[row["prompt"] for row in own],
        completions=engine.tokenizer.batch_decode(ids, skip_special_tokens=True),
        completion_ids=ids,
        answer=[row["answer"] for row in own],
    )


def update(step: TrainStep, forest: treepo.Forest, rewards: list[float]) -> float:
    """Adds the gradient of the whole forest to the parameters; returns the loss."""
    credited = credit(forest, rewards, "treepo")
    parts = []
    for trees in microbatches(forest, MAX_TOKENS):
        part = forest.select(trees)
        packed = pack(part)
        own = credited.of_trees(forest, trees)
        parts.append((packed, TokenAdvantages.of_credit(packed, part, own)))
    total = sum(advantages.total_weight for _, advantages in parts)  # one divisor for all parts
    done = [step.backward(packed, advantages, total) for packed, advantages in parts]
    return sum(metrics.loss for metrics in done)


def main() -> None:
    """Trains the embedded model for a few steps."""
    engine = treepo.Engine.from_pretrained(embedded.MODEL_PATH)
    engine.model.requires_grad_(True)
    step = TrainStep(engine.model, LossConfig(), TEMPERATURE, exact=engine.exact_forward)
    parameters = list(engine.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    search = treepo.SearchConfig(width=8, segment_len=9, max_depth=7)
    sampling = treepo.SamplingParams(temperature=TEMPERATURE)
    examples = iter(embedded.train_examples(seed=0))
    for number in range(NUM_STEPS):
        rows = list(islice(examples, PROMPTS_PER_STEP))
        keys = range(number * PROMPTS_PER_STEP, (number + 1) * PROMPTS_PER_STEP)
        prompts = [row["prompt"] for row in rows]
        forest = engine.rollout(prompts, search, sampling, seed=0, keys=keys)
        rewards = rewards_of(engine, forest, rows)
        loss = update(step, forest, rewards)
        optimizer.step()
        optimizer.zero_grad()
        torch.autograd.graph.increment_version(parameters)  # a fused optimizer does not
        engine.weights_changed()
        mean = sum(rewards) / len(rewards)
        print(f"step {number + 1}: reward {mean:.3f}, loss {loss:+.4f}, {forest.num_paths} answers")


if __name__ == "__main__":
    main()
