"""Memory and time of one update in each of its forms, each in a process of its own.

A binary tree of random tokens runs forward and backward: as padded trajectories, as a packed tree,
with recomputed activations, and cut into parts. Reported are the peak of resident memory beyond
that of the loaded model, seconds, tokens run forward, and how far the gradient is from that of the
first form (l2). The gradient itself is part of the memory: 513 MiB for SmolLM2-135M.

    python benches/train_memory.py --model models/SmolLM2-135M-Instruct
    python benches/train_memory.py --model models/SmolLM2-135M-Instruct --tokens 32768 \
        --max-tokens-per-part 2048 --forms parts_recompute
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import environment

HERE = Path(__file__).resolve().parent
MIB = 1 << 20


def main() -> None:
    options = parse()
    if options.form is not None:
        print(json.dumps(measure(options)), flush=True)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for form in options.forms:
            rows.append(run(form, options, Path(folder)))
            compare(rows, Path(folder))
            print(rows[-1], flush=True)
    name = f"train_memory_smollm2_{options.tokens}"
    print(environment.write(name, {"options": vars(options), "forms": rows}))


def run(form: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    words = [
        f"--{key.replace('_', '-')}={value}"
        for key, value in vars(options).items()
        if key not in ("forms", "form", "gradient")
    ]
    variables = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    variables["OMP_NUM_THREADS"] = str(options.threads)
    done = subprocess.run(
        [
            sys.executable,
            str(HERE / "train_memory.py"),
            *words,
            f"--form={form}",
            f"--gradient={folder / form}.npy",
        ],
        env=variables,
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return found


def compare(rows: list[dict[str, Any]], folder: Path) -> None:
    """Put the distance from the first form's gradient into the last row."""
    first, last = (
        np.load(folder / f"{row['form']}.npy", mmap_mode="r") for row in (rows[0], rows[-1])
    )
    step, difference, length = 1 << 24, 0.0, 0.0
    for begin in range(0, len(first), step):
        mine = np.asarray(last[begin : begin + step], dtype=np.float64)
        theirs = np.asarray(first[begin : begin + step], dtype=np.float64)
        difference += float(((mine - theirs) ** 2).sum())
        length += float((theirs**2).sum())
    rows[-1][f"gradient_from_{rows[0]['form']}_l2"] = (difference / length) ** 0.5
    rows[-1]["memory_ratio"] = rows[-1]["extra_mib"] / rows[0]["extra_mib"]
    rows[-1]["time_ratio"] = rows[-1]["seconds"] / rows[0]["seconds"]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One update of one form."""
    import torch

    from train_step import flat_update
    from treepo.config import EngineConfig, LossConfig, UpdateConfig
    from treepo.engine.load import load_model
    from treepo.train.pack import pack
    from treepo.train.step import TrainStep

    torch.set_num_threads(options.threads)
    model, _ = load_model(options.model, EngineConfig())
    forest = random_forest(options, model.config.vocab_size)
    values = np.random.default_rng(1).normal(size=forest.num_paths)
    cut = options.max_tokens_per_part
    update = {
        "tree": UpdateConfig(),
        "recompute": UpdateConfig(activations="recompute"),
        "parts_recompute": UpdateConfig(max_tokens_per_part=cut, parts="recompute"),
        "parts_keep": UpdateConfig(max_tokens_per_part=cut, parts="keep"),
    }.get(options.form)
    packed = pack(forest)
    forwarded = forest.num_paths * int(forest.paths.length.max())
    before, began = peak_mib(), time.perf_counter()
    if update is None:
        flat_update(model, forest, values)
    else:
        step = TrainStep(model, LossConfig(), 1.0, update=update)
        found = step.backward(packed, values, packed.num_trajectory_tokens)
        forwarded = found.num_forward_tokens
    seconds, extra = time.perf_counter() - began, peak_mib() - before
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    np.save(options.gradient, gradient.numpy())
    return {
        "form": options.form,
        "extra_mib": extra,
        "seconds": seconds,
        "forward_tokens": forwarded,
        "unique_tokens": forest.num_tokens,
        "trajectory_tokens": int(forest.paths.length.sum()),
        "load_average": os.getloadavg()[0],
    }


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def random_forest(options: argparse.Namespace, vocab: int) -> Any:
    """A tree with `width` leaves and about `tokens` unique tokens, forks in a binary tree."""
    from treepo import core
    from treepo.forest import FinishReason, Forest

    rng = np.random.default_rng(0)
    levels = int(np.log2(options.width)) + 1
    segment = max(1, (options.tokens - options.prompt_len) // (2 * options.width - 1))
    forest = core.Forest()
    tree = forest.add_tree(0, rng.integers(0, vocab, options.prompt_len, dtype=np.uint32))
    paths = [0]
    for level in range(levels):
        if level:
            at = options.prompt_len + level * segment
            paths += [forest.fork(tree, path, at) for path in paths]
        for path in paths:
            ids = rng.integers(0, vocab, segment, dtype=np.uint32)
            logprobs = np.full(segment, -np.log(vocab), np.float32)
            forest.append(tree, path, ids, logprobs, np.ones(segment, np.float32))
            forest.mark(tree, path)
    for path in paths:
        forest.finish(tree, path, int(FinishReason.STOP))
    return Forest(forest)


FORMS = ("flat", "tree", "recompute", "parts_keep", "parts_recompute")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=environment.SMOLLM2)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--max-tokens-per-part", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--gradient", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
