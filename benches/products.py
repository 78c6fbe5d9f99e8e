"""Products with packed weights: treepo's kernel beside oneDNN, for each number of rows.

The linears of a model's decoder layers, each layer with weights of its own, and its head, in turns
(ABAB); medians. As in the engine, threads stay awake through a step of treepo's. Printed are both
rates, the bytes of weights that pass a second, and the ratio.

    python benches/products.py --model models/SmolLM2-135M-Instruct --rows 1 4 16 64 128 1024
    python benches/products.py --dtype bfloat16
    python benches/products.py --dtype bfloat16 --level avx2
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import environment
from treepo import core
from treepo.engine.fused import products
from treepo.engine.kernels import Kernels


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    load = list(os.getloadavg())
    shapes = layer_shapes(options.model)
    kernels = Kernels(level=options.level)
    dtype = getattr(torch, options.dtype)
    kinds = {"treepo": products.panels(kernels), "onednn": products.onednn}
    if not products.can_pack(dtype):
        del kinds["onednn"]
    figures = {}
    with torch.inference_mode():
        packed = {
            name: [pack((torch.randn(shape) * 0.05).to(dtype), True) for shape in shapes]
            for name, pack in kinds.items()
        }
        for num_rows in options.rows:
            rows = {width: torch.randn(num_rows, width).to(dtype) for _, width in shapes}
            steps = {name: step(weights, shapes, rows) for name, weights in packed.items()}
            steps["treepo"] = partial(kernels.awake, steps["treepo"])
            figures[num_rows] = measure(steps, shapes, num_rows, dtype.itemsize, options.repeats)
    file = environment.write(
        f"products_{options.dtype}_{kernels.level}",
        {"options": vars(options), "load_average_before": load, "rows": figures},
    )
    print(file)


def layer_shapes(folder: str) -> list[tuple[int, int]]:
    """Outputs and inputs of every linear, those with one input as one: as the engine packs them."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    groups: list[list[torch.nn.Linear]] = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        groups += [
            [attention.q_proj, attention.k_proj, attention.v_proj],
            [attention.o_proj],
            [mlp.gate_proj, mlp.up_proj],
            [mlp.down_proj],
        ]
    return [
        (sum(x.out_features for x in group), group[0].in_features) for group in [*groups, [head]]
    ]


def step(
    weights: list[products.PackedWeight],
    shapes: list[tuple[int, int]],
    rows: dict[int, torch.Tensor],
) -> Callable[[], None]:
    def run() -> None:
        for weight, (_, width) in zip(weights, shapes, strict=True):
            weight.product(rows[width], None, None)

    return run


def measure(
    steps: dict[str, Callable[[], None]],
    shapes: list[tuple[int, int]],
    num_rows: int,
    itemsize: int,
    repeats: int,
) -> dict[str, float]:
    """Medians of one number of rows; prints a line."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, run in steps.items():
            began = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    size = sum(outputs * inputs for outputs, inputs in shapes)
    line = f"{num_rows:5} rows:"
    for name, value in medians.items():
        line += f"  {name} {2 * num_rows * size / value / 1e9:6.1f} GFLOP/s"
        line += f" {itemsize * size / value / 1e9:5.1f} GB/s"
    figures = {f"{name}_s": value for name, value in medians.items()}
    if "onednn" in medians:
        figures["treepo_over"] = medians["onednn"] / medians["treepo"]
        line += f"  treepo is {figures['treepo_over']:.2f} x"
    print(line, flush=True)
    return figures


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=environment.SMOLLM2, help="folder of a Llama-like model")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 1024])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--level", choices=core.Kernels.levels(), help="instructions of treepo's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
