"""Memory in large pages, for what every step reads: the KV pool and packed weights."""

import contextlib
import ctypes
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGE_PAGE = 2 << 20
# Linux 6.1 and later; Python has no name for it yet.
_MADV_COLLAPSE = 25


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of zeros; on Linux, on a CPU, in large pages where the system has some.

    Blocks of keys and values lie anywhere in their pool. With pages of 4 KiB almost each of them
    costs a walk through the page tables, and the processor's read-ahead ends with the page.

    Raises:
        RuntimeError: There is not so much memory; torch's own error of this kind.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if device.type != "cpu" or advice is None or num_bytes < _LARGE_PAGE:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise RuntimeError(f"cannot allocate memory: {num_bytes} bytes ({error})") from error
    with contextlib.suppress(OSError):  # A kernel without large pages.
        pages.madvise(advice)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))


def enlarge_pages(address: int, num_bytes: int) -> None:
    """Move memory that is in use to large pages; without effect where there are none.

    It takes the time of a copy, and more where memory is in pieces: for what stays.
    """
    ask_for_large_pages(address, num_bytes)
    _advise(address, num_bytes, _MADV_COLLAPSE)


def ask_for_large_pages(address: int, num_bytes: int) -> None:
    """Ask for large pages under memory; those that exist stay as they are, new ones are large.

    The request reaches out to whole large pages. Memory of others that lies there only gets larger
    pages too.

    Args:
        address: Where the memory begins.
        num_bytes: Its length.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        _advise(address, num_bytes, advice)


def _advise(address: int, num_bytes: int, advice: int) -> None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    first = address // _LARGE_PAGE * _LARGE_PAGE
    end = -(-(address + num_bytes) // _LARGE_PAGE) * _LARGE_PAGE
    madvise(first, end - first, advice)
