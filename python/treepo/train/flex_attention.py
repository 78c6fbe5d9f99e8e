"""Attention over a packed forest by torch's FlexAttention: blocks that no query sees are skipped.

The whole tree mask is one integer a token, `kv <= q < subtree_end[kv]`, so which blocks are needed
and which are full follows from the largest and smallest end in a block of keys, without the mask
itself: O((T / 128)^2). The number of tokens is padded to whole blocks and dynamic in the compiled
kernel, so that trees of other sizes do not compile again.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from treepo.train.attention import DensePackedContext
from treepo.train.pack import PackedForest

BLOCK = 128
"""Tokens of a block of queries or keys."""


class FlexContext:
    """Block-sparse tree attention; layers with attention sinks take the dense mask."""

    def __init__(self, packed: PackedForest, device: torch.device) -> None:
        """Finds the blocks of full attention; masks of windows are made on first use.

        Args:
            packed: the packed forest.
            device: where the model lives; compiled on CUDA, eager and without a gradient on a CPU.
        """
        self._packed = packed
        self._device = device
        self._length = -(-packed.num_tokens // BLOCK) * BLOCK
        padding = np.arange(packed.num_tokens, self._length)
        ends = np.concatenate([packed.subtree_end, padding + 1])
        self._ends = torch.from_numpy(ends).to(device)
        self._positions = torch.from_numpy(np.append(packed.positions, padding)).to(device)
        self._masks: dict[int | None, BlockMask] = {}
        self._dense: DensePackedContext | None = None

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attends over the whole row; arguments and result as in `PackedContext.attend`."""
        if sinks is not None:
            self._dense = self._dense or DensePackedContext(self._packed, self._device)
            return self._dense.attend(
                module,
                query,
                key,
                value,
                scaling=scaling,
                sliding_window=sliding_window,
                softcap=softcap,
                sinks=sinks,
            )
        missing = self._length - query.shape[2]
        padded = (F.pad(x, (0, 0, 0, missing)) for x in (query, key, value))
        attended = _kernel(self._device.type)(
            *padded,
            score_mod=None if softcap is None else _capped(softcap),
            block_mask=self._mask(sliding_window),
            scale=scaling,
            enable_gqa=True,
        )
        result: Tensor = attended[:, :, : query.shape[2]].transpose(1, 2)
        return result

    def _mask(self, window: int | None) -> BlockMask:
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> BlockMask:
        ends, positions = self._ends, self._positions

        def visible(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:  # noqa: ARG001
            seen = (kv <= q) & (q < ends[kv])
            return seen if window is None else seen & (positions[q] - positions[kv] < window)

        of_blocks = ends.view(-1, BLOCK)
        block = torch.arange(len(of_blocks), device=self._device)
        query, key = block[:, None], block[None, :]
        needed = (query >= key) & (of_blocks.amax(1)[None, :] > query * BLOCK)
        full = (query > key) & (of_blocks.amin(1)[None, :] >= (query + 1) * BLOCK)
        if window is not None:
            full = torch.zeros_like(full)  # Distance within a block is the mask function's matter.
        partial_blocks, full_blocks = _listed(needed & ~full), _listed(full)
        return BlockMask.from_kv_blocks(
            *partial_blocks,
            *full_blocks,
            BLOCK_SIZE=BLOCK,
            mask_mod=visible,
            seq_lengths=(self._length, self._length),
        )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first: [1, 1, Q(, K)]."""
    count = blocks.sum(1, dtype=torch.int32)
    order = torch.argsort(blocks.to(torch.int8), dim=1, descending=True, stable=True)
    return count[None, None], order.to(torch.int32)[None, None]


@cache
def _kernel(device: str) -> Any:
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


@cache
def _capped(softcap: float) -> Any:
    def cap(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:  # noqa: ARG001
        return softcap * torch.tanh(score / softcap)

    return cap
