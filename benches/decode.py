"""Decoding end to end: treepo, vLLM, llama.cpp and transformers beside the roof, in turns.

Every contestant samples the same prompts of random token ids in one call: temperature 1, sampled
log-probabilities, no stop tokens. Loading, compilation and a warm-up are not timed; the prefill
is. The rounds go through all contestants in order (ABAB), with new prompts each round. Medians
over the rounds are printed: generated tok/s, the fraction of the roof (see roof.py), and treepo
over vLLM. One result file for each dtype and OMP_WAIT_POLICY.

    python benches/decode.py --model models/SmolLM2-135M-Instruct \
        --peer-python PEER/bin/python --llama-python LLAMA/bin/python \
        --dtypes float32 bfloat16 --omp passive default
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig

import environment
import programs
from contestants import Field
from peers.server import Request

# A token that has no special meaning in common vocabularies starts above the first few hundred.
FIRST_TOKEN = 1_000
WARM_UP_TOKENS = 4

Rounds = dict[str, list[dict[str, Any]]]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    for dtype in options.dtypes:
        for omp in options.omp:
            compare(options, dtype, omp)


def compare(options: argparse.Namespace, dtype: str, omp: str) -> None:
    """All rounds of one dtype and wait policy, and their result file."""
    os.environ.pop("OMP_WAIT_POLICY", None)
    if policy := programs.WAIT_POLICIES[omp]:
        os.environ["OMP_WAIT_POLICY"] = policy
    load = list(os.getloadavg())
    setting = programs.Setting(
        options=options, dtype=dtype, omp=omp, max_num_seqs=max(options.sequences)
    )
    with Field(programs.build(options.contestants, setting)) as field:
        results = {
            count: measure(field, options, count, f"{dtype}, {omp}") for count in options.sequences
        }
        file = environment.write(
            f"decode_{dtype}_{omp}_{environment.simd_level()}",
            {
                "options": vars(options),
                "dtype": dtype,
                "omp": omp,
                "threads_of_each": options.threads,
                "load_average_before": load,
                "contestants": field.described(),
                "errors": field.errors,
                "sequences": results,
            },
        )
    print(file)


def measure(field: Field, options: argparse.Namespace, count: int, label: str) -> dict[str, Any]:
    """Warm-up and rounds at one number of sequences; prints and returns the medians."""
    names = options.contestants
    vocab_size = AutoConfig.from_pretrained(options.model).vocab_size
    for name in names:
        field.ask(name, replace(request(options, count, vocab_size, -1), max_tokens=WARM_UP_TOKENS))
    rounds: Rounds = {name: [] for name in names}
    for repeat in range(options.repeats):
        asked = request(options, count, vocab_size, repeat)
        for name in names:
            if name in options.slow and repeat >= options.slow_repeats:
                continue
            reply = field.ask(name, asked)
            if reply is not None:
                check(name, reply, asked)
                rounds[name].append(reply)
    figures = summarize({name: replies for name, replies in rounds.items() if replies})
    show(figures, f"{label}, {count} sequences")
    return {**figures, "rounds": rounds}


def request(options: argparse.Namespace, count: int, vocab_size: int, repeat: int) -> Request:
    """Prompts of random ids; another repeat has others, so that no cache of prefixes has them."""
    draw = random.Random(f"{count} {repeat}")
    prompts = [
        [draw.randrange(FIRST_TOKEN, vocab_size) for _ in range(options.prompt_tokens)]
        for _ in range(count)
    ]
    return Request(prompts=prompts, max_tokens=options.new_tokens, seed=repeat + 1)


def check(name: str, reply: dict[str, Any], asked: Request) -> None:
    """Refuse a contestant that returned less than was asked for."""
    expected = len(asked.prompts) * asked.max_tokens
    if reply["tokens"] != expected:
        raise RuntimeError(f"{name} returned {reply['tokens']} tokens, {expected} were asked for")


def summarize(rounds: Rounds) -> dict[str, Any]:
    """Medians: tok/s of each, over the roof, over vLLM."""
    rates = {
        name: [reply["tokens"] / reply["seconds"] for reply in replies]
        for name, replies in rounds.items()
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    top, treepo = medians.get("roof"), medians.get("treepo")
    return {
        "tokens_per_s": medians,
        "range": {name: [min(values), max(values)] for name, values in rates.items()},
        "of_roof": {name: rate / top for name, rate in medians.items()} if top else {},
        "treepo_over": {name: treepo / rate for name, rate in medians.items()} if treepo else {},
        "most_cpu_of_others": max(
            reply["others_cpu_share"] for replies in rounds.values() for reply in replies
        ),
    }


def show(figures: dict[str, Any], title: str) -> None:
    print(title)
    for name, rate in figures["tokens_per_s"].items():
        low, high = figures["range"][name]
        line = f"  {name:14}{rate:9.1f} tok/s ({low:.1f} to {high:.1f})"
        if name in figures["of_roof"]:
            line += f", {figures['of_roof'][name]:.3f} of the roof"
        if name in figures["treepo_over"]:
            line += f", treepo is {figures['treepo_over'][name]:.2f} x"
        print(line)
    share = figures["most_cpu_of_others"]
    print(f"  waiting processes took up to {share:.1%} of a core", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    programs.add_options(parser, kv_gib=4)
    default = [name for name in programs.PROGRAMS if name != "vllm_split"]
    choices = list(programs.PROGRAMS)
    parser.add_argument("--contestants", nargs="+", choices=choices, default=default)
    parser.add_argument("--sequences", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--slow", nargs="*", default=["transformers", "continuous"])
    parser.add_argument(
        "--slow-repeats", type=int, default=5, help="rounds of the contestants of --slow"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
