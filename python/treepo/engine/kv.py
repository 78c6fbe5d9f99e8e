"""The KV pool: keys and values of every layer in fixed blocks, and how many blocks to make."""

import math
import os
import sys
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from treepo.config import EngineConfig
from treepo.core import Kernels
from treepo.engine.hook import KVShapes, LayerShape
from treepo.engine.memory import zeros

# Share of the free memory that the pool takes when the config leaves its size open. A training
# phase shares the memory, and on a CPU the rest of the machine does.
_FREE_SHARE = {"cpu": 0.25, "cuda": 0.5}
_GIB = 1 << 30
# Limit and use of a control group's memory and what of it is cache that gives way, for version 2
# and version 1: two files, and a key of a third.
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
# Keys of one layer gathered at once for a batch of rows. On a CPU more would leave the cache
# between the gather and the product; on a GPU less would leave it idle.
_GATHERED_BYTES = {"cpu": 3 << 20, "cuda": 256 << 20}


class Layout(StrEnum):
    """Order of a layer's keys and values within a block."""

    TOKENS = "tokens"
    """Keys [block_size, num_kv_heads, key_dim], values [block_size, num_kv_heads, value_dim]."""
    HEADS = "heads"
    """Keys [num_kv_heads, key_dim, block_size] in words of 32 bits (two numbers of a key in
    bfloat16), so that a vector holds one word of neighbouring keys; values [num_kv_heads,
    block_size, value_dim], padded to whole vectors."""

    def key_shape(self, layer: LayerShape, block_size: int) -> tuple[int, int, int]:
        """Return the shape of a block's keys."""
        if self is Layout.TOKENS:
            return block_size, layer.num_kv_heads, layer.key_dim
        return layer.num_kv_heads, Kernels.padded_key_dim(layer.key_dim), block_size

    def value_shape(self, layer: LayerShape, block_size: int) -> tuple[int, int, int]:
        """Return the shape of a block's values."""
        if self is Layout.TOKENS:
            return block_size, layer.num_kv_heads, layer.value_dim
        return layer.num_kv_heads, block_size, Kernels.padded_value_dim(layer.value_dim)


class KVPool:
    """Keys and values of all layers in blocks that share one id space.

    A slot is block * block_size + offset. Block 0 belongs to no path: keys and values that nobody
    reads are written there.
    """

    def __init__(
        self,
        shapes: KVShapes,
        *,
        num_blocks: int,
        block_size: int,
        device: torch.device,
        layout: Layout = Layout.TOKENS,
    ) -> None:
        """Allocate the pool, zeroed: a masked slot that held a NaN would spoil the sum.

        Args:
            shapes: Head counts and widths of each layer, and the dtype.
            num_blocks: Blocks, block 0 included.
            block_size: Slots of a block.
            device: Where the pool lives.
            layout: Order within a block.
        """
        self.num_blocks = num_blocks
        self.block_size = block_size

        self.layout = layout
        self.dtype = shapes.dtype

        def blocks(shape: tuple[int, int, int]) -> Tensor:
            return zeros((num_blocks, *shape), shapes.dtype, device)

        self._keys = [blocks(layout.key_shape(x, block_size)) for x in shapes.layers]
        self._values = [blocks(layout.value_shape(x, block_size)) for x in shapes.layers]
        self._blocks = [x.view(num_blocks, -1) for x in (*self._keys, *self._values)]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, [num_blocks, ..] in the pool's layout."""
        return self._keys[index], self._values[index]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Write tokens' keys and values of one layer of a pool in the layout `TOKENS`.

        Args:
            layer: The layer's index.
            slots: i64 [num_tokens].
            key: [num_kv_heads, num_tokens, key_dim].
            value: [num_kv_heads, num_tokens, value_dim].
        """
        num_tokens, num_slots = len(slots), self.num_blocks * self.block_size
        for pool, new in ((self._keys[layer], key), (self._values[layer], value)):
            rows = new.transpose(0, 1).reshape(num_tokens, -1)
            pool.view(num_slots, -1).index_copy_(0, slots, rows.to(pool.dtype))

    def copy_blocks(self, sources: Tensor, destinations: Tensor) -> None:
        """Copy whole blocks in every layer; all sources are read before any is written.

        A copy may carry slots beyond those that are wanted: its destination has no reader yet, and
        the step writes those slots before anyone reads them.

        Args:
            sources: i64 [num_copies] block ids.
            destinations: i64 [num_copies] block ids, distinct.
        """
        for blocks in self._blocks:
            blocks.index_copy_(0, destinations, blocks.index_select(0, sources))


def choose_num_blocks(
    config: EngineConfig,
    shapes: KVShapes,
    *,
    max_model_len: int,
    device: torch.device,
    layout: Layout = Layout.TOKENS,
) -> int:
    """Return the pool's size in blocks, block 0 included.

    `config.num_blocks` decides, then `config.kv_cache_gib`. With neither, every row can reach
    the context length if that fits in a share of the free memory (a quarter on a CPU, half on a
    GPU).
    """
    if config.num_blocks is not None:
        return config.num_blocks
    bytes_per_block = _bytes_per_block(shapes, config.block_size, layout)
    if config.kv_cache_gib is not None:
        return max(2, int(config.kv_cache_gib * _GIB) // bytes_per_block)
    wanted = 1 + config.max_num_seqs * -(-max_model_len // config.block_size)
    share = _FREE_SHARE.get(device.type, _FREE_SHARE["cuda"])
    return max(2, min(wanted, int(free_bytes(device) * share) // bytes_per_block))


def _bytes_per_block(shapes: KVShapes, block_size: int, layout: Layout) -> int:
    """Bytes of a block over all layers."""
    numbers = sum(
        math.prod(layout.key_shape(x, block_size)) + math.prod(layout.value_shape(x, block_size))
        for x in shapes.layers
    )
    return numbers * shapes.dtype.itemsize


def choose_gathered_slots(shapes: KVShapes, device: torch.device) -> int:
    """Return how many slots of one layer attention may gather at once."""
    limit = _GATHERED_BYTES.get(device.type, _GATHERED_BYTES["cuda"])
    widest = max(x.num_kv_heads * max(x.key_dim, x.value_dim) for x in shapes.layers)
    return max(1, limit // (widest * shapes.dtype.itemsize))


def free_bytes(device: torch.device) -> int:
    """Return the memory in bytes that a new allocation on `device` can take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_free_of_machine(), _free_of_container())


def _free_of_machine() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _free_of_container(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return what a control group of this process leaves, bytes; a huge number without a limit.

    Args:
        root: Where control groups are, of either version; a container sees its own there.
    """
    free = sys.maxsize
    for limit_name, usage_name, details, cache in _LIMITS:
        try:
            limit, usage = (int((root / name).read_text()) for name in (limit_name, usage_name))
        except (OSError, ValueError):  # No such file, or "max".
            continue
        free = min(free, max(0, limit - usage + _value_of(root / details, cache)))
    return free


def _value_of(file: Path, key: str) -> int:
    """Return the number behind a key in a file of `key value` lines; 0 if it is not there."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == key), 0)
