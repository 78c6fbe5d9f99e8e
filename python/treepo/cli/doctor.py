"""`treepo doctor`: what this machine computes with, and if sampling and training agree on it."""

import argparse
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from treepo import core
from treepo.cli import EXIT_FAULT_FOUND, EXIT_OK, options
from treepo.config import Autocast, LossConfig, SamplingParams, SearchConfig, TrainConfig

_PACKAGES = ("torch", "transformers", "numpy")
_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SEARCH = SearchConfig(width=4, segment_len=8, max_depth=3)
_PROMPT = "12*34="
_WIDTH = 14


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        text: What was found.
        remedy: What to do about it; None if it is as it should be.
        is_fault: Whether results cannot be trusted as long as it stays.
    """

    name: str
    text: str
    remedy: str | None = None
    is_fault: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    options.add_config_arguments(parser)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Examine machine and model; returns the exit code."""
    options.require_packages()
    config = options.load_config(arguments, overrides)
    path = options.model_path(config)
    options.set_threads(config)
    found = []
    for finding in [*_machine(), *_model(path, config)]:
        found.append(finding)
        print(f"{finding.name:{_WIDTH}} {finding.text}")
        if finding.remedy is not None:
            print(f"{'':{_WIDTH}} -> {finding.remedy}")
    return EXIT_FAULT_FOUND if any(finding.is_fault for finding in found) else EXIT_OK


def _machine() -> Iterator[Finding]:
    import torch

    from treepo.engine.kv import free_bytes
    from treepo.engine.threads import gomp_parallel

    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    python = platform.python_version()
    yield Finding("versions", f"treepo {core.__version__}, Python {python}, {packages}")
    kernels = core.Kernels(1)
    yield Finding("processor", f"{platform.machine()}, kernels at level {kernels.level}")
    yield _threads(torch.get_num_threads(), _num_cores())
    if gomp_parallel() is None:
        yield Finding(
            "OpenMP",
            "torch's library was not found; kernels run on threads of their own",
            "two teams of threads compete: keep num_threads at half the cores, or install a torch "
            "whose OpenMP library is loaded as a file of its own",
        )
    else:
        yield Finding("OpenMP", "kernels run on torch's own threads")
    yield _wait_policy()
    yield _packed()
    yield _large_pages()
    gib = free_bytes(torch.device("cpu")) / (1 << 30)
    yield Finding("memory", f"{gib:.1f} GiB free")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding(
        "GPU", ", ".join(gpus) or "none", "set engine.device=cuda to use it" if gpus else None
    )


def _num_cores() -> int:
    """Cores that this process may use; all, where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads(num_threads: int, num_cores: int) -> Finding:
    text = f"{num_threads} on {num_cores} cores"
    if num_threads <= num_cores:
        return Finding("threads", text)
    return Finding("threads", text, f"set num_threads to {num_cores} at most")


def _wait_policy() -> Finding:
    policy = os.environ.get("OMP_WAIT_POLICY", "").upper()
    if policy == "PASSIVE":
        return Finding(
            "wait policy", "PASSIVE; a program of your own sets it before it imports torch"
        )
    return Finding(
        "wait policy",
        f"{policy or 'not set'}: waiting threads spin",
        "unless nothing else ever runs on these cores, set OMP_WAIT_POLICY=PASSIVE before torch "
        "is imported: beside other work spinning threads can make everything ten times slower",
    )


def _packed() -> Finding:
    import torch

    from treepo.engine.fused import packing, uses_panels
    from treepo.engine.kernels import Kernels

    kernels = Kernels()
    fast = [name for name in ("float32", "bfloat16") if packing(getattr(torch, name), kernels)]
    if "float32" not in fast:
        return Finding(
            "products",
            "this torch has no packed products",
            "install a torch built with oneDNN; without it sampling is slower and log-probs of "
            "sampling and training differ by rounding",
        )
    if "bfloat16" not in fast:
        return Finding(
            "products",
            "packed in float32; bfloat16 is several times slower on this processor",
            "keep engine.dtype=float32; engine.kv_dtype=bfloat16 still halves the KV cache",
        )
    if uses_panels(torch.bfloat16, kernels) and kernels.level != "avx512_bf16":
        return Finding(
            "products",
            "packed in float32 and bfloat16; this processor has no products in bfloat16, so it is "
            "slower from some ten rows a step on, in half the memory",
        )
    return Finding("products", "packed in float32 and bfloat16")


def _large_pages() -> Finding:
    setting = _LARGE_PAGES.read_text() if _LARGE_PAGES.exists() else "[never]"
    if "[never]" in setting:
        return Finding(
            "large pages",
            "off",
            "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled; attention reads "
            "its cache faster",
        )
    return Finding("large pages", "on where they are asked for")


def _model(path: str, config: TrainConfig) -> Iterator[Finding]:
    from treepo.engine import Engine
    from treepo.engine.fused import Fusion

    model, tokenizer = options.load_model(path, config.engine)
    engine = Engine(model, tokenizer, config.engine)
    yield Finding("model", f"{type(model).__name__}, {model.dtype}, {path}")
    is_on_cpu = engine.model.device.type == "cpu"
    fusions = set(engine.fusions)
    missing = [x.value for x in Fusion if x not in fusions]
    if is_on_cpu:
        text = ", ".join(x.value for x in engine.fusions) or "nothing"
        yield Finding("fused", text + (f"; not {', '.join(missing)}" if missing else ""))
    yield _agreement(engine, config)


def _agreement(engine: Any, config: TrainConfig) -> Finding:
    """Sample a tree, and compare its log-probs with those of the training step."""
    import torch

    from treepo.engine.hook import evaluating
    from treepo.train.pack import pack
    from treepo.train.step import TrainStep

    forest = engine.rollout([_PROMPT], _SEARCH, SamplingParams(), seed=0)
    packed = pack(forest)
    exact = engine.exact_forward
    step = TrainStep(engine.model, LossConfig(), 1.0, update=config.update, exact=exact)
    with torch.no_grad(), evaluating(engine.model):
        logprob, _ = step.logprobs(packed)
    difference = (logprob.cpu().double() - torch.from_numpy(packed.old_logprob)).abs().max().item()
    text = f"log-probs of {packed.num_sampled_tokens} tokens differ by {difference:.2g} at most"
    limit = _expected_difference(engine.model.dtype, config)
    if difference <= limit:
        return Finding("training", text + (": the same bits" if difference == 0 else ""))
    return Finding(
        "training",
        text,
        f"at most {limit:g} was expected: sampling and training disagree about this model; set "
        "engine.packing=never and engine.attention=torch to see which part it is",
        is_fault=True,
    )


def _expected_difference(dtype: Any, config: TrainConfig) -> float:
    """Return how far log-probs may differ, in nats, with the coarsest number format in use."""
    import torch

    engine = config.engine
    if engine.rollout_dtype is not None and getattr(torch, engine.rollout_dtype.value) != dtype:
        return 1.0
    formats = [dtype] if engine.kv_dtype is None else [dtype, getattr(torch, engine.kv_dtype.value)]
    is_half = any(torch.finfo(x).bits < 32 for x in formats)
    is_half = is_half or config.update.autocast is Autocast.BFLOAT16
    return 0.25 if is_half else 1e-3
