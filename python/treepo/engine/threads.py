"""The OpenMP library that torch computes on, so that kernels share its threads."""

import ctypes
from pathlib import Path

import torch

_NAMES = ("libgomp", "libiomp5", "libomp")


def gomp_parallel() -> int | None:
    """Return the address of `GOMP_parallel` in torch's OpenMP library; None if there is none.

    The dynamic linker's order decides: a library that is preloaded for the whole process, then
    the one that came with torch, then the only one that is loaded.
    """
    for library in (None, *_candidates()):
        try:
            function = ctypes.CDLL(library).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None


def _candidates() -> list[str]:
    loaded = _loaded()
    home = Path(torch.__file__).resolve().parent
    own = [x for x in loaded if home in Path(x).parents or Path(x).parent.name == "torch.libs"]
    if own:
        return own[:1]
    return loaded if len(loaded) == 1 else []


def _loaded() -> list[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    return sorted(path for path in paths if Path(path).name.startswith(_NAMES))
