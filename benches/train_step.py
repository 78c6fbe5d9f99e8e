"""One update: the loss on the packed tree against the same loss on padded flat trajectories, ABAB.

The tree runs as in training, where a CPU repeats the bits of sampling, and once more by torch
alone. The flat side is a plain Hugging Face forward (sdpa, padded, chunked head on completion
rows), with the same advantages and the same loss. Prints seconds of forward and backward, unique
tokens, and the ratio beside the bound that counts needed flops; of each gradient its l2 distance
from that of the flat side in float64, and the tree's from the flat one's.

    python benches/train_step.py                            # the embedded model
    python benches/train_step.py --model models/SmolLM2-135M-Instruct --prompts 1 --segment-len 32
"""

import argparse
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import environment
from rollout import multiplications, word_problems
from treepo import Engine, EngineConfig, Forest, SamplingParams, SearchConfig
from treepo.config import LossConfig
from treepo.engine.exact import ExactForward
from treepo.engine.hook import plain_attention
from treepo.tasks import embedded
from treepo.train.head import output_head, token_logprobs
from treepo.train.losses import policy_loss
from treepo.train.pack import pack
from treepo.train.step import TrainStep


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    path = options.model or str(embedded.MODEL_PATH)
    engine = Engine.from_pretrained(path, EngineConfig(), device=options.device)
    forest = sample_forest(engine, options)
    values = np.random.default_rng(0).normal(size=forest.num_paths)
    engine.release()
    sides = {
        "tree": lambda: tree_update(engine.model, forest, values, engine.exact_forward),
        "tree_torch": lambda: tree_update(engine.model, forest, values, None),
        "flat": lambda: flat_update(engine.model, forest, values),
    }
    runs: dict[str, list[float]] = {name: [] for name in sides}
    gradients = {}
    for repeat in range(options.repeats + 1):
        for name, update in sides.items():
            engine.model.zero_grad()
            began = time.perf_counter()
            update()
            seconds = time.perf_counter() - began
            if repeat == 0:  # warm-up; both gradients must be the same
                gradients[name] = gradient(engine.model)
            else:
                runs[name].append(seconds)
    engine.model.zero_grad()
    flat_update(engine.model.double(), forest, values)
    gradients["float64"] = gradient(engine.model)
    report(options, engine.model, forest, runs, gradients)


def sample_forest(engine: Engine, options: argparse.Namespace) -> Forest:
    """Trees of answers of the model itself; a short answer does not end its tree early."""
    prompts = word_problems(options.prompts) if options.model else multiplications(options.prompts)
    search = SearchConfig(
        width=options.width,
        segment_len=options.segment_len,
        max_depth=options.max_depth,
    )
    return engine.rollout(prompts, search, SamplingParams(), seed=0)


def tree_update(model: Any, forest: Forest, values: Any, exact: ExactForward | None) -> None:
    """Forward and backward of the packed tree."""
    packed = pack(forest)
    step = TrainStep(model, LossConfig(), 1.0, exact=exact)
    step.backward(packed, values, packed.num_trajectory_tokens)


def flat_update(model: Any, forest: Forest, values: Any) -> None:
    """Forward and backward of padded trajectories through a plain forward, the same loss."""
    paths = range(forest.num_paths)
    rows = [torch.as_tensor(forest.token_ids(p), dtype=torch.int64) for p in paths]
    lengths = torch.tensor([len(row) for row in rows])
    prompt_len = torch.as_tensor(forest.trees.prompt_len[forest.paths.tree], dtype=torch.int64)
    ids = pad_sequence(rows, batch_first=True).to(model.device)
    place = torch.arange(ids.shape[1])
    mask = (place < lengths[:, None]).to(model.device)
    wanted = ((place >= prompt_len[:, None]) & (place < lengths[:, None])).to(model.device)
    with plain_attention(model, "sdpa"):
        hidden = model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        picked = hidden[:, :-1][wanted[:, 1:]]
        logprob, _ = token_logprobs(picked, output_head(model), ids[wanted], 1.0)
        old = np.concatenate(
            [forest.tokens.logprob[forest.token_index(p)][prompt_len[p] :] for p in paths]
        )
        advantage = torch.as_tensor(values, dtype=logprob.dtype, device=model.device)
        advantage = advantage.repeat_interleave((lengths - prompt_len).to(model.device))
        old_logprob = torch.as_tensor(old, device=model.device)
        policy_loss(logprob, old_logprob, advantage, LossConfig(), len(logprob)).loss.backward()


def gradient(model: Any) -> torch.Tensor:
    """The gradient of all parameters, one after another."""
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The l2 distance, relative to what is expected."""
    return float((actual - expected).norm() / expected.norm())


def flop_bound(model: Any, forest: Forest) -> float:
    """Needed flops of the flat update over those of the tree: body, head and attention pairs."""
    config = model.config.get_text_config()
    head = config.vocab_size * config.hidden_size
    tied = bool(getattr(config, "tie_word_embeddings", False))
    body = sum(p.numel() for p in model.parameters()) - head * (1 if tied else 2)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pair = 12 * config.num_hidden_layers * config.num_attention_heads * width
    lengths = forest.paths.length.astype(np.int64)
    at = forest.paths.at.astype(np.int64)
    longest = int(lengths.max())
    flat_tokens, flat_pairs = len(lengths) * longest, len(lengths) * longest * (longest + 1) // 2
    tree_pairs = int((lengths * (lengths + 1) - at * (at + 1)).sum()) // 2

    def cost(tokens: int, sampled: int, pairs: int) -> int:
        return 6 * body * tokens + 8 * head * sampled + pair * pairs

    flat = cost(flat_tokens, forest.num_completion_tokens, flat_pairs)
    return flat / cost(forest.num_tokens, forest.num_unique_completion_tokens, tree_pairs)


def report(
    options: argparse.Namespace,
    model: Any,
    forest: Forest,
    runs: dict[str, list[float]],
    gradients: dict[str, torch.Tensor],
) -> None:
    medians = {name: statistics.median(seconds) for name, seconds in runs.items()}
    sides = [name for name in gradients if name != "float64"]
    result = {
        "options": vars(options),
        "seconds": medians,
        "runs": runs,
        "speedup": medians["flat"] / medians["tree"],
        "cost_of_exactness": medians["tree"] / medians["tree_torch"],
        "flop_bound": flop_bound(model, forest),
        "gradient_difference_l2": distance(gradients["tree"], gradients["flat"]),
        "distance_from_float64": {
            name: distance(gradients[name], gradients["float64"]) for name in sides
        },
        "trajectories": forest.num_paths,
        "unique_tokens": forest.num_tokens,
        "trajectory_tokens": int(forest.paths.length.sum()),
    }
    for key in (
        "seconds",
        "speedup",
        "cost_of_exactness",
        "flop_bound",
        "gradient_difference_l2",
        "distance_from_float64",
        "unique_tokens",
    ):
        print(f"{key}: {result[key]}")
    label = "smollm2" if options.model else "embedded"
    print(environment.write(f"train_step_{label}_{options.prompts}x{options.width}", result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="Hugging Face folder; the embedded model if absent")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--segment-len", type=int, default=9)
    parser.add_argument("--max-depth", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
