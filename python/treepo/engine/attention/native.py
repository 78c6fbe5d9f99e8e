"""Paged attention by the CPU kernels: whatever else is in a step, a token gets the same bits."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from treepo.core import AttentionLayer
from treepo.engine.attention.base import Feature, LayerCall
from treepo.engine.inputs import Arrangement, StepInputs, StepRows
from treepo.engine.kernels import Kernels
from treepo.engine.kv import KVPool, Layout

# For a token that is fed again only for its logits: its slot lies in the reserved block 0, which
# nobody reads.
_NOWHERE = np.int64(-1)


@dataclass(frozen=True, slots=True)
class _Known:
    """A layer as the kernels know it, and what it was made from."""

    scaling: float
    sliding_window: int | None
    softcap: float | None
    sinks: tuple[int, int] | None
    pool: KVPool
    layer: AttentionLayer


class NativeBackend:
    """The kernels over a pool in the layout `HEADS`; an `AttentionBackend`."""

    name = "native"
    features = frozenset(Feature)
    layout = Layout.HEADS
    reads_groups = True

    def __init__(self, kernels: Kernels) -> None:
        """Start without layers; each is described to the kernels when it first attends."""
        self._kernels = kernels
        self._layers: dict[int, _Known] = {}

    def arrange(self, rows: StepRows) -> Arrangement:
        """Hand the rows over to the kernels."""
        step = self._kernels.native.step(
            num_blocks=rows.num_blocks,
            block_size=rows.block_size,
            query_starts=rows.query_starts,
            kv_lens=rows.kv_lens,
            tables=rows.table,
            table_rows=rows.row_ids,
            slots=np.where(rows.slots < rows.block_size, _NOWHERE, rows.slots),
            row_order=rows.row_order,
            groups=rows.groups,
        )
        return Arrangement(token_order=None, state=step)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pool: KVPool,
        inputs: StepInputs,
        call: LayerCall,
    ) -> Tensor:
        """Write and attend; shapes as in `AttentionBackend.attend`.

        Where the pool's number format is not the model's, all that attention reads and writes is
        rounded to the pool's.
        """
        if query.dtype != pool.dtype:
            q, k, v = (x.to(pool.dtype) for x in (query, key, value))
            return self.attend(layer, q, k, v, pool, inputs, call).to(query.dtype)
        heads = query.shape[1], key.shape[1], key.shape[2], value.shape[2]
        described = self.described(layer, heads, pool, call)
        return self._kernels.attend(inputs.arrangement.state, described, query, key, value)

    def described(
        self, layer: int, heads: tuple[int, int, int, int], pool: KVPool, call: LayerCall
    ) -> AttentionLayer:
        """Return a layer as the kernels know it.

        Args:
            layer: Its index.
            heads: Heads of queries, heads of keys, width of a key, width of a value.
            pool: The block pool.
            call: What it asks for.
        """
        known = self._layers.get(layer)
        if known is None or not _is_same(known, pool, call):
            known = self._layers[layer] = _describe(pool, layer, heads, call)
        return known.layer


def _is_same(known: _Known, pool: KVPool, call: LayerCall) -> bool:
    return (
        known.pool is pool
        and known.scaling == call.scaling
        and known.sliding_window == call.sliding_window
        and known.softcap == call.softcap
        and known.sinks == _version(call.sinks)
    )


def _version(tensor: Tensor | None) -> tuple[int, int] | None:
    # A tensor that was made without gradients has no version; it is new at every address.
    if tensor is None:
        return None
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def _describe(
    pool: KVPool, layer: int, heads: tuple[int, int, int, int], call: LayerCall
) -> _Known:
    keys, values = pool.layer(layer)
    num_heads, num_kv_heads, key_dim, value_dim = heads
    described = AttentionLayer(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        scaling=call.scaling,
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        window=call.sliding_window,
        softcap=call.softcap,
        sinks=None if call.sinks is None else call.sinks.float().tolist(),
    )
    return _Known(
        scaling=call.scaling,
        sliding_window=call.sliding_window,
        softcap=call.softcap,
        sinks=_version(call.sinks),
        pool=pool,
        layer=described,
    )
