"""What of a decode step is spent outside of kernels.

Steps of so many rows, one token each; medians, milliseconds. `in_forward` is what stands between
kernels in a forward: lookups of what the model is, transformers' modules where they run; `angles`
its cosines and sines, by torch, where a forward is one call; `around_it` what treepo takes around
the forward: plan, inputs, commit, counters. `share` is that of all three, `python` that without
the angles.

    python benches/step_share.py --model models/SmolLM2-135M-Instruct --rows 16 64 128
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import environment
from treepo import Engine, EngineConfig, SamplingParams, SearchConfig
from treepo.engine.fused.ends import Ends
from treepo.engine.stats import EngineStats

WARM_UP_TOKENS = 4


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    config = EngineConfig(max_num_seqs=max(options.rows))
    engine = Engine.from_pretrained(options.model, config, dtype=options.dtype)
    engine.eos_token_ids = ()
    load = list(os.getloadavg())
    figures = {num_rows: measure(engine, num_rows, options) for num_rows in options.rows}
    file = environment.write(
        f"step_share_{options.dtype}_{environment.simd_level()}",
        {"options": vars(options), "load_average_before": load, "rows": figures},
    )
    print(file)


class Clock:
    """Seconds by part of the step that runs."""

    def __init__(self) -> None:
        self.seconds = {"forward": 0.0, "kernels": 0.0, "sampler": 0.0, "angles": 0.0}
        self._began = time.perf_counter()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is added to a part."""

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - began

        return call

    def end_step(self) -> dict[str, float]:
        """Return the step's figures and begin the next one."""
        end = time.perf_counter()
        step, seconds = end - self._began, dict(self.seconds)
        self.seconds, self._began = dict.fromkeys(seconds, 0.0), end
        angles = seconds["angles"]
        in_forward = seconds["forward"] - seconds["kernels"] - angles
        around_it = step - seconds["forward"] - seconds["sampler"]
        return {"step": step, "in_forward": in_forward, "angles": angles, "around_it": around_it}


class TimedKernels:
    """`core.Kernels` whose calls are timed."""

    def __init__(self, kernels: Any, clock: Clock) -> None:
        self._kernels = kernels
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._kernels, name)
        if not callable(found) or name == "step":  # Which prepares, around the forward.
            return found
        return self._clock.timed("sampler" if name == "sample" else "kernels", found)

    def awake(self, function: Callable[[TimedKernels], Any]) -> Any:
        """As `core.Kernels.awake`."""
        return self._kernels.awake(lambda awake: function(TimedKernels(awake, self._clock)))


@contextmanager
def timed(engine: Engine, clock: Clock) -> Iterator[None]:
    """Within the `with` block an engine's forwards and kernels are timed."""
    policy, kernels = engine.policy, engine.policy.kernels
    assert kernels is not None
    plain: Any = kernels._parked
    counted: Any = TimedKernels(plain, clock)
    kernels._parked = kernels._kernels = counted
    policy.logits = clock.timed("forward", policy.logits)  # type: ignore[method-assign]
    angles = Ends.angles
    Ends.angles = clock.timed("angles", angles)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del policy.logits
        Ends.angles = angles  # type: ignore[method-assign]
        kernels._parked = kernels._kernels = plain


def measure(engine: Engine, num_rows: int, options: argparse.Namespace) -> dict[str, float]:
    """Medians over the steps in which every row decodes; prints a line."""
    prompts = list(torch.randint(1_000, 10_000, (num_rows, options.prompt_len)).numpy())
    engine.rollout(prompts, SearchConfig.flat(1, WARM_UP_TOKENS), SamplingParams())
    clock, steps, fed = Clock(), [], [0]

    def end_step(stats: EngineStats) -> None:
        figures = clock.end_step()
        if stats.fed_tokens - fed[0] == num_rows:
            steps.append(figures)
        fed[0] = stats.fed_tokens

    with timed(engine, clock):
        search = SearchConfig.flat(1, options.max_tokens)
        engine.rollout(prompts, search, SamplingParams(), on_step=end_step)
    figures = {name: 1e3 * statistics.median(step[name] for step in steps) for name in steps[0]}
    python = (figures["in_forward"] + figures["around_it"]) / figures["step"]
    share = python + figures["angles"] / figures["step"]
    line = "  ".join(f"{name} {value:6.2f} ms" for name, value in figures.items())
    shares = f"outside of kernels {100 * share:.1f} %, Python {100 * python:.1f} %"
    print(f"{num_rows:5} rows:  {line}  {shares}", flush=True)
    return {**figures, "share": share, "python": python}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=environment.SMOLLM2, help="Hugging Face folder")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
