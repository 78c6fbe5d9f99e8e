"""Memory in large pages, for arrays that are read in pieces of a few kilobytes."""

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGE_PAGE = 2 << 20


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of zeros; on Linux, on a CPU, in large pages where the system has some.

    Blocks of keys and values lie anywhere in their pool. With pages of 4 KiB almost each of them
    costs a walk through the page tables, and the processor's read-ahead ends with the page.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if device.type != "cpu" or advice is None or num_bytes < _LARGE_PAGE:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # A kernel without large pages.
        pages.madvise(advice)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))
