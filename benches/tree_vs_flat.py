"""Trees against independent completions, ours and vLLM's, of the same word problems, in turns.

For each number of prompts and each shape of tree (depth x segment): treepo's tree, treepo's flat
rollout, and vLLM's own n completions of each prompt with its prefix cache on. All sample at
temperature 1 with log-probabilities, stop at the model's end-of-sequence tokens and have the same
completion length at most. Medians over the rounds. The rounds go through all three (ABAB).

Printed: trajectories/s; the bound returned/decoded (completion tokens of the tree's trajectories
over the tokens it sampled) and how much of it tree over flat, and tree over vLLM, reach. The
contestants' completions may differ in length, so the bound by tokens, the other's sampled tokens
over the tree's for as many trajectories, is printed too.

KV at its peak: blocks in use times block size, against the unique tokens that had been computed by
that step (prompts, and tokens sampled in all trees) plus one block a path. `slack` is
(KV - paths x block size) / unique tokens.

    python benches/tree_vs_flat.py --model FOLDER --peer-python PEER/bin/python
    python benches/tree_vs_flat.py --model FOLDER --contestants treepo
    python benches/tree_vs_flat.py --model FOLDER --growth 200
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import environment
import programs
import word_problems
from contestants import Field
from peers.server import Request
from treepo.prompts import encode, eos_token_ids

WARM_UP_TOKENS = 4
MIB = 1 << 20
Reply = dict[str, Any]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    prompts, stop = encode_prompts(options)
    for dtype in options.dtypes:
        for omp in options.omp:
            compare(options, prompts, stop, dtype=dtype, omp=omp)


def encode_prompts(options: argparse.Namespace) -> tuple[list[list[int]], list[int]]:
    """Token ids of the problems in the model's chat template, and the ids that end an answer."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model)
    problems = word_problems.messages(max(options.prompts))
    return [encode(tokenizer, x).tolist() for x in problems], list(eos_token_ids(model, tokenizer))


def compare(
    options: argparse.Namespace, prompts: list[list[int]], stop: list[int], *, dtype: str, omp: str
) -> None:
    """All shapes at one dtype and wait policy, and their result file."""
    os.environ.pop("OMP_WAIT_POLICY", None)
    if policy := programs.WAIT_POLICIES[omp]:
        os.environ["OMP_WAIT_POLICY"] = policy
    load = list(os.getloadavg())
    rows = max(options.prompts) * options.width
    setting = programs.Setting(options=options, dtype=dtype, omp=omp, max_num_seqs=rows)
    names = ["treepo"] if options.growth else options.contestants
    with Field(programs.build(names, setting)) as field:
        results = {}
        for count in options.prompts:
            for depth, segment_len in options.trees:
                tree = Request(
                    prompts=prompts[:count],
                    n=options.width,
                    max_tokens=depth * segment_len,
                    stop_token_ids=stop,
                    segment_len=segment_len,
                    max_depth=depth,
                )
                label = f"{count} prompts x {options.width}, {depth} x {segment_len} tokens"
                print(f"{dtype}, {omp}, {label}", flush=True)
                measured = grow if options.growth else measure
                results[label] = measured(field, options, tree)
        result = {
            "options": vars(options),
            "dtype": dtype,
            "omp": omp,
            "threads_of_each": options.threads,
            "load_average_before": load,
            "contestants": field.described(),
            "errors": field.errors,
            "cases": results,
        }
        kind = "growth" if options.growth else "tree_vs_flat"
        file = environment.write(f"{kind}_{dtype}_{omp}_{environment.simd_level()}", result)
    print(file)


def measure(field: Field, options: argparse.Namespace, tree: Request) -> dict[str, Any]:
    """Warm-up and rounds of one case; prints and returns the medians."""
    flat = replace(tree, segment_len=None, max_depth=1)
    turns = {"tree": ("treepo", tree), "flat": ("treepo", flat)}
    if "vllm" in options.contestants:
        turns["vllm"] = ("vllm", flat)
    for name, asked in turns.values():
        segment_len = None if asked.segment_len is None else 1
        warm_up = replace(asked, max_tokens=WARM_UP_TOKENS, segment_len=segment_len)
        field.ask(name, warm_up)
    rounds: dict[str, list[Reply]] = {turn: [] for turn in turns}
    for repeat in range(options.repeats):
        for turn, (name, asked) in turns.items():
            reply = field.ask(name, replace(asked, seed=repeat + 1))
            if reply is not None:
                rounds[turn].append(reply)
    figures = summarize({turn: replies for turn, replies in rounds.items() if replies})
    figures["memory"] = peak_memory(rounds["tree"], tree)
    show(figures)
    return {**figures, "rounds": rounds}


def summarize(rounds: dict[str, list[Reply]]) -> dict[str, Any]:
    """Medians of each turn, and of the tree over the others and over the bounds."""

    def median(turn: str, value: Any) -> float:
        return statistics.median(value(reply) for reply in rounds[turn])

    rate = {turn: median(turn, lambda x: x["completions"] / x["seconds"]) for turn in rounds}
    bound = median("tree", lambda x: x["tokens"] / x["decoded"])
    decoded = {turn: median(turn, lambda x: x["decoded"] / x["completions"]) for turn in rounds}
    over = {}
    for other in [turn for turn in rounds if turn != "tree"]:
        ratio, bound_by_tokens = rate["tree"] / rate[other], decoded[other] / decoded["tree"]
        over[other] = {
            "ratio": ratio,
            "of_bound": ratio / bound,
            "bound_by_tokens": bound_by_tokens,
            "of_bound_by_tokens": ratio / bound_by_tokens,
        }
    return {
        "trajectories_per_s": rate,
        "decoded_per_s": {
            turn: median(turn, lambda x: x["decoded"] / x["seconds"]) for turn in rounds
        },
        "completion_len": {
            turn: median(turn, lambda x: x["tokens"] / x["completions"]) for turn in rounds
        },
        "bound": bound,
        "tree_over": over,
        "most_cpu_of_others": max(
            reply["others_cpu_share"] for replies in rounds.values() for reply in replies
        ),
    }


def peak_memory(replies: list[Reply], tree: Request) -> dict[str, Any]:
    """KV of the trees at its peak; the round with the most for its tokens."""
    cases = []
    for reply in replies:
        details, paths = reply["details"], reply["completions"]
        kv_tokens = details["peak_blocks"] * details["block_size"]
        prompt_tokens = sum(len(prompt) for prompt in tree.prompts)
        unique = prompt_tokens + details["peak_decoded_tokens"]
        partial = paths * details["block_size"]
        cases.append(
            {
                "kv_tokens": kv_tokens,
                "unique_tokens": unique,
                "forest_tokens": prompt_tokens + reply["decoded"],
                "paths": paths,
                "one_block_a_path": partial,
                "slack": (kv_tokens - partial) / unique,
                "over_unique_tokens": kv_tokens / unique,
                "finished_trees": details["peak_finished_trees"],
            }
        )
    return max(cases, key=lambda case: case["slack"])


def show(figures: dict[str, Any]) -> None:
    for turn, rate in figures["trajectories_per_s"].items():
        decoded, length = figures["decoded_per_s"][turn], figures["completion_len"][turn]
        print(
            f"  {turn:5}{rate:8.3f} trajectories/s, {decoded:8.1f} sampled tok/s, "
            f"{length:.1f} tokens a completion"
        )
    print(f"  bound, returned/decoded: {figures['bound']:.3f}")
    for other, values in figures["tree_over"].items():
        print(
            f"  tree over {other}: {values['ratio']:.3f} x, {values['of_bound']:.3f} of the bound; "
            f"by tokens {values['of_bound_by_tokens']:.3f} of {values['bound_by_tokens']:.3f}"
        )
    memory = figures["memory"]
    print(
        f"  peak KV {memory['kv_tokens']} tokens, {memory['unique_tokens']} unique tokens, "
        f"{memory['paths']} paths x 1 block = {memory['one_block_a_path']}: slack "
        f"{memory['slack']:.3f}, over unique alone {memory['over_unique_tokens']:.3f}; the whole "
        f"forest has {memory['forest_tokens']} unique tokens"
    )
    share = figures["most_cpu_of_others"]
    print(f"  waiting processes took up to {share:.1%} of a core", flush=True)


def grow(field: Field, options: argparse.Namespace, tree: Request) -> dict[str, Any]:
    """Resident memory over `options.growth` trees in a row; prints it ten times on the way."""
    process, pool = [], []
    for number in range(options.growth):
        reply = field.ask("treepo", replace(tree, seed=number))
        if reply is None:
            break
        process.append(reply["details"]["process_bytes"])
        pool.append(reply["details"]["pool_bytes"])
        if number % max(options.growth // 10, 1) == 0 or number == options.growth - 1:
            now, grown = (process[-1], pool[-1]), (process[-1] - process[0], pool[-1] - pool[0])
            print(
                f"  rollout {number + 1}: process {now[0] / MIB:.1f} MiB, of which pool "
                f"{now[1] / MIB:.1f} MiB; since the first {grown[0] / MIB:+.1f} and "
                f"{grown[1] / MIB:+.1f} MiB",
                flush=True,
            )
    return {"process_bytes": process, "pool_bytes": pool}


def shape(text: str) -> tuple[int, int]:
    """7x32 as (max_depth, segment_len)."""
    depth, segment_len = text.split("x")
    return int(depth), int(segment_len)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    # 32 x 16 flat completions of 256 tokens take 5.6 GiB of SmolLM2 in fp32.
    programs.add_options(parser, kv_gib=7)
    parser.add_argument("--prompts", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--trees", type=shape, nargs="+", default=[(7, 32), (4, 64)], help="depth x segment, 7x32"
    )
    parser.add_argument("--contestants", nargs="+", default=["treepo", "vllm"])
    parser.add_argument("--growth", type=int, default=0, help="only this many trees in a row")
    return parser.parse_args()


if __name__ == "__main__":
    main()
