"""The roof of decoding: how fast the model's linears alone run, with packed weights.

All linears of a step, each layer with weights of its own, packed by mkldnn (oneDNN): rows/s with
the head at as many rows as there are sequences, and without it at 1,024 rows for prefill. A token
end to end costs a row with the head and its share of the prompt's rows:

    roof [generated tok/s] = 1 / (1 / rows_with_head(n) + prompt_len / max_tokens / rows_prefill)

Attention, norms, sampling and scheduling are no part of it. As a contestant (`--serve`) it is
measured in the rounds of the others and replies with the time that the roof gives the request.

    python benches/roof.py --model models/SmolLM2-135M-Instruct --dtype float32
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from environment import SMOLLM2
from peers.server import Reply, Request, own_stdout, serve

PREFILL_ROWS = 1024
REPEATS = 3


class Linears:
    """The packed linears of a model of random weights.

    Args:
        model: Hugging Face folder; its config gives the shapes.
        dtype: Of weights and rows.
    """

    def __init__(self, model: str, dtype: torch.dtype) -> None:
        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            meta = AutoModelForCausalLM.from_config(config)
        head = meta.get_output_embeddings()
        shapes = [
            tuple(module.weight.shape)
            for module in meta.modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        ]
        self.dtype = dtype
        self._layers = [(shape[1], self._pack(shape)) for shape in shapes]
        self._head = (head.weight.shape[1], self._pack(tuple(head.weight.shape)))
        self._widths = {width for width, _ in (*self._layers, self._head)}

    def rows_per_s(self, num_rows: int, *, with_head: bool) -> float:
        """Median rate of a step of `num_rows` rows, after one step to warm up."""
        rows = {width: torch.randn(num_rows, width, dtype=self.dtype) for width in self._widths}
        linears = [*self._layers, self._head] if with_head else self._layers
        seconds = [self._step(linears, rows) for _ in range(REPEATS + 1)][1:]
        return num_rows / statistics.median(seconds)

    def _pack(self, shape: tuple[int, ...]) -> torch.Tensor:
        weight = torch.randn(shape, dtype=self.dtype) * 0.05
        return torch.ops.mkldnn._reorder_linear_weight(weight)

    @staticmethod
    def _step(linears: list[tuple[int, torch.Tensor]], rows: dict[int, torch.Tensor]) -> float:
        began = time.perf_counter()
        for width, weight in linears:
            torch.ops.mkldnn._linear_pointwise(rows[width], weight, None, "none", [], "")
        return time.perf_counter() - began


def answer(linears: Linears, request: Request) -> Reply:
    """The least time that the linears of this request take."""
    num_seqs = len(request.prompts) * request.n
    prompt_len = statistics.mean(len(prompt) for prompt in request.prompts)
    decode = linears.rows_per_s(num_seqs, with_head=True)
    prefill = linears.rows_per_s(PREFILL_ROWS, with_head=False)
    tokens_per_s = 1 / (1 / decode + prompt_len / request.max_tokens / prefill)
    tokens = num_seqs * request.max_tokens
    return Reply(
        seconds=tokens / tokens_per_s,
        completions=num_seqs,
        tokens=tokens,
        decoded=tokens,
        details={"decode_rows_per_s": decode, "prefill_rows_per_s": prefill},
    )


def main() -> None:
    options = parse()
    answers = own_stdout() if options.serve else None
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        linears = Linears(options.model, getattr(torch, options.dtype))
        if answers is not None:
            serve(lambda request: answer(linears, request), ("torch",), answers)
            return
        for num_rows in options.rows:
            rate = linears.rows_per_s(num_rows, with_head=True)
            print(f"{options.dtype}, {num_rows} rows with head: {rate:.0f} rows/s")
        rate = linears.rows_per_s(PREFILL_ROWS, with_head=False)
        print(f"{options.dtype}, {PREFILL_ROWS} rows without head: {rate:.0f} rows/s")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=SMOLLM2, help="Hugging Face folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", action="store_true", help="answer requests as a contestant")
    return parser.parse_args()


if __name__ == "__main__":
    main()
