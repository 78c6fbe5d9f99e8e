"""Attention over a packed forest by the kernel that samples: the same bits, with a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from treepo.core import AttentionLayer, AttentionStep
from treepo.engine.hook import AttentionContext
from treepo.engine.kernels import Kernels
from treepo.train.attention import chains
from treepo.train.pack import PackedForest


class ExactContext:
    """The sampling kernel forward; backward by another context, which computes its forward again.

    The kernel reads keys through block tables. Here a block holds one token, so that the table of
    a node is its ancestor chain: packed positions.
    """

    def __init__(self, packed: PackedForest, kernels: Kernels, gradient: AttentionContext) -> None:
        """Describes the nodes to the kernel.

        Args:
            packed: the packed forest, on a CPU.
            kernels: the kernels that sampled it.
            gradient: attention to the same keys by functions that torch can differentiate.
        """
        self._gradient = gradient
        self._kernels = kernels
        self._num_tokens = packed.num_tokens
        self._step = _step(packed, kernels)
        self._pools: dict[tuple[int, int, int, torch.dtype], tuple[Tensor, Tensor]] = {}

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
        """Attends along ancestor chains; arguments and result as in `PackedContext.attend`."""
        options = {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap}
        output: Tensor = _Attend.apply(query, key, value, sinks, self, module, options)
        return output

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, options: Any
    ) -> Tensor:
        """Return the kernel's result without a gradient, [1, T, H, Dv]."""
        keys, values = self._pool(key, value)
        scaling = options["scaling"]
        layer = AttentionLayer(
            num_heads=query.shape[1],
            num_kv_heads=key.shape[1],
            key_dim=key.shape[3],
            value_dim=value.shape[3],
            scaling=query.shape[3] ** -0.5 if scaling is None else scaling,
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            window=options["sliding_window"],
            softcap=options["softcap"],
            sinks=None if sinks is None else sinks.float().tolist(),
        )
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return self._kernels.attend(self._step, layer, q, k, v)[None]

    def backward(
        self,
        states: tuple[Tensor | None, ...],
        grad: Tensor,
        module: nn.Module,
        options: Any,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key, value and sinks."""
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in states if x is not None]
            query, key, value, *sinks = inputs
            output = self._gradient.attend(
                module, query, key, value, sinks=sinks[0] if sinks else None, **options
            )
        grads: list[Tensor | None] = list(torch.autograd.grad(output, inputs, grad))
        return (*grads, *[None] * (len(states) - len(grads)))

    def _pool(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return room for one layer's keys and values; layers of one shape take turns."""
        num_heads, key_dim, value_dim = key.shape[1], key.shape[3], value.shape[3]
        shape = (num_heads, key_dim, value_dim, key.dtype)
        if shape not in self._pools:
            native = self._kernels.native
            widths = native.padded_key_dim(key_dim), native.padded_value_dim(value_dim)
            self._pools[shape] = (
                key.new_zeros((self._num_tokens, num_heads, widths[0])),
                key.new_zeros((self._num_tokens, num_heads, widths[1])),
            )
        return self._pools[shape]


class _Attend(torch.autograd.Function):
    """`ExactContext` as a function with a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        context: ExactContext,
        module: nn.Module,
        options: Any,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, sinks)
        ctx.settings = context, module, options
        return context.forward(query, key, value, sinks, options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        context, module, options = ctx.settings
        grads = context.backward(ctx.saved_tensors, grad, module, options)
        return (*grads, None, None, None)


def _step(packed: PackedForest, kernels: Kernels) -> AttentionStep:
    """Describe each node as a row whose blocks hold one token."""
    of_nodes = chains(packed.spans)
    lengths = np.array([len(chain) for chain in of_nodes], dtype=np.int32)
    tables = np.zeros((len(lengths), int(lengths.max())), dtype=np.int32)
    for table, chain in zip(tables, of_nodes, strict=True):
        table[: len(chain)] = chain
    rows = np.arange(len(lengths), dtype=np.int32)
    return kernels.native.step(
        num_blocks=packed.num_tokens,
        block_size=1,
        query_starts=np.append(packed.spans.start, packed.num_tokens).astype(np.int32),
        kv_lens=lengths,
        tables=tables,
        table_rows=rows,
        slots=np.arange(packed.num_tokens, dtype=np.int64),
        row_order=rows,
        groups=np.zeros((0, 4), dtype=np.int32),
    )
