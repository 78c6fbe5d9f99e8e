"""Resident memory of this process and of single tensors in it, on Linux."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import torch


def process_bytes() -> int:
    """Resident bytes of the process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def resident_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the pages of contiguous CPU tensors that are in memory; see mincore(2)."""
    return sum(_resident(x.data_ptr(), x.nbytes) for x in tensors)


def _resident(address: int, num_bytes: int) -> int:
    first = address // mmap.PAGESIZE * mmap.PAGESIZE
    num_pages = -(-(address + num_bytes - first) // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * num_pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = ctypes.c_void_p(first), ctypes.c_size_t(num_pages * mmap.PAGESIZE), states
    if libc.mincore(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return sum(state & 1 for state in bytes(states)) * mmap.PAGESIZE
