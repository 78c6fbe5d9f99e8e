"""Where a figure was measured: machine, commit, load, threads. Every result file carries it."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
SMOLLM2 = str(REPO / "models" / "SmolLM2-135M-Instruct")
"""The folder that `just smollm2` prepares."""
RESULTS = REPO / "benches" / "results"
SIMD_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe() -> dict[str, Any]:
    """Machine, software and load of this moment."""
    import torch

    return {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cpu": _cpu("model name"),
        "simd": [flag for flag in SIMD_FLAGS if flag in _cpu("flags").split()],
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": list(os.getloadavg()),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")},
    }


def simd_level() -> str:
    """The widest vectors of this processor, for names of files: its figures are its own."""
    flags = _cpu("flags").split()
    return next((name for name in ("avx512f", "avx2") if name in flags), "other").rstrip("f")


def write(name: str, result: dict[str, Any]) -> Path:
    """Write a result beside the environment to benches/results and return the file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps({"environment": describe(), **result}, indent=2) + "\n")
    return file


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPO), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _cpu(field: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(field):
            return line.split(":", 1)[1].strip()
    return platform.processor()
