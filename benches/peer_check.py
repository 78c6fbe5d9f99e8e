"""Whether every contestant computes the same model: greedy completions against transformers'.

Prompts are word problems. For each contestant, how many completions are equal in every token, and
at which token the others part. In fp32 all should agree but for ties; in bf16 they part early.

    python benches/peer_check.py --model models/SmolLM2-135M-Instruct \
        --peer-python PEER/bin/python --llama-python LLAMA/bin/python
"""

from __future__ import annotations

import argparse

from transformers import AutoTokenizer

import programs
import word_problems
from contestants import Field
from peers.server import Request
from treepo.prompts import encode

REFERENCE = "transformers"


def main() -> None:
    options = parse()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    prompts = [encode(tokenizer, x).tolist() for x in word_problems.messages(options.prompts)]
    asked = Request(
        prompts=prompts, max_tokens=options.new_tokens, temperature=0, wants_tokens=True
    )
    for dtype in options.dtypes:
        setting = programs.Setting(
            options=options, dtype=dtype, omp=options.omp[0], max_num_seqs=options.prompts
        )
        with Field(programs.build(options.contestants, setting)) as field:
            replies = {name: field.ask(name, asked) for name in options.contestants}
        found = {name: reply["token_ids"] for name, reply in replies.items() if reply}
        report(dtype, found)


def report(dtype: str, found: dict[str, list[list[int]]]) -> None:
    """Print each contestant's agreement with the reference."""
    reference = found[REFERENCE]
    for name, completions in found.items():
        parted = [first_difference(a, b) for a, b in zip(completions, reference, strict=True)]
        differences = [position for position in parted if position is not None]
        print(
            f"{dtype}, {name}: {len(parted) - len(differences)} of {len(parted)} completions "
            f"equal, others part at tokens {differences}",
            flush=True,
        )


def first_difference(a: list[int], b: list[int]) -> int | None:
    """Index of the first token that differs, or None."""
    pairs = enumerate(zip(a, b, strict=True))
    return next((index for index, (x, y) in pairs if x != y), None)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    programs.add_options(parser, kv_gib=1)
    names = [name for name in programs.PROGRAMS if name not in ("roof", "vllm_split")]
    parser.add_argument("--contestants", nargs="+", choices=names, default=names)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    main()
