"""What admission's optimism does in a tight pool: the scheduler alone, its tokens made up.

Trees of 8 paths with prompts of 100 tokens and completions of at most 512, of which each token
ends its path with a fixed probability, share 1,024 blocks of 16. The same tokens are decoded at
every `engine.admission_percent`; steps, blocks and repeated work differ. No model, no
clock: the numbers are the same on every machine.

    python benches/admission.py
    python benches/admission.py --percents 100 200 300 --segment-len 32 --max-depth 16
"""

import argparse

import numpy as np

from treepo.core import PlanBuffers, Scheduler, SearchConfig

EOS, OTHER = 1, 2
PROMPT_LEN, BLOCK_SIZE, NUM_BLOCKS = 100, 16, 1024


def run(percent: int, options: argparse.Namespace) -> dict[str, int]:
    """All trees at one percentage; returns the scheduler's counts."""
    search = SearchConfig(
        width=8,
        segment_len=options.segment_len,
        max_depth=options.max_depth,
        eos_token_ids=[EOS],
    )
    scheduler = Scheduler(
        search,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_num_seqs=options.rows,
        max_num_batched_tokens=2048,
        admission_percent=percent,
    )
    for key in range(options.trees):
        scheduler.add_tree(key, np.full(PROMPT_LEN, 10 + key, np.uint32))
    plan = PlanBuffers(scheduler)
    while (sizes := plan.plan(scheduler)).num_rows:
        uniforms = plan.uniforms[: sizes.num_samples]
        tokens = np.where(uniforms < options.end, EOS, OTHER).astype(np.uint32)
        zeros = np.zeros(len(tokens), np.float32)
        scheduler.commit_step(tokens, zeros, zeros)
    return scheduler.stats()


def main() -> None:
    options = parse()
    names = ("steps", "peak_blocks", "evictions", "preemptions", "recomputed_tokens")
    print("percent", *names, "decoded_tokens", sep="  ")
    for percent in options.percents:
        stats = run(percent, options)
        counts = (f"{stats[name]:{len(name)}d}" for name in (*names, "decoded_tokens"))
        print(f"{percent:7d}", *counts, sep="  ", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--percents", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--trees", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--segment-len", type=int, default=64)
    parser.add_argument("--max-depth", type=int, default=8)
    parser.add_argument("--end", type=float, default=0.004, help="probability to end, each token")
    return parser.parse_args()


if __name__ == "__main__":
    main()
