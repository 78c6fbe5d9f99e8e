"""The attention context of sampling: write a step's keys and values, then read the pool."""

import torch
from torch import Tensor, nn

from treepo.core import AttentionLayer, AttentionStep
from treepo.engine.attention.base import AttentionBackend, LayerCall, check_features
from treepo.engine.attention.native import NativeBackend
from treepo.engine.fused.whole import LayersInStep, WholeLayers
from treepo.engine.inputs import StepInputs
from treepo.engine.kv import KVPool


class PagedContext:
    """Attention of one step over a block pool; an `AttentionContext`.

    Attributes:
        layers: Decoder layers that the kernels compute in one call, of the engine that samples.
    """

    def __init__(
        self,
        pool: KVPool,
        backend: AttentionBackend,
        inputs: StepInputs,
        layers: WholeLayers | None = None,
    ) -> None:
        """Bind a step's inputs to the pool and the back end that computes it.

        Args:
            pool: Keys and values.
            backend: Computes attention.
            inputs: Of the step.
            layers: Decoder layers that the kernels may compute in one call.
        """
        self._pool = pool
        self._backend = backend
        self._inputs = inputs
        self.layers = layers
        self._is_looked_up = False
        self._in_step: LayersInStep | None = None

    def layers_in_step(self, shape: torch.Size, dtype: torch.dtype) -> LayersInStep | None:
        """Return the whole layers in this step; None if there are none.

        They are looked up once, whatever is asked for later.

        Args:
            shape: Of the input of a layer: 1, num_tokens, width.
            dtype: Its number format.
        """
        if not self._is_looked_up:
            self._is_looked_up = True
            layers = self.layers
            self._in_step = None if layers is None else layers.in_step(self, shape, dtype)
        return self._in_step

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
        """Attend through the back end; shapes as in `AttentionContext.attend`."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        call = _call(query.shape[-1], scaling, sliding_window, softcap, sinks)
        check_features(self._backend, call.features(), layer)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return self._backend.attend(layer, q, k, v, self._pool, self._inputs, call).unsqueeze(0)

    def native(
        self,
        module: nn.Module,
        heads: tuple[int, int, int, int],
        dtype: torch.dtype,
        *,
        scaling: float | None,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> tuple[AttentionStep, AttentionLayer] | None:
        """Return what the kernels need to attend as a part of a whole layer.

        Args:
            module: The attention module, as in `attend`.
            heads: Heads of queries, heads of keys, width of a key, width of a value.
            dtype: Number format of queries, keys and values.
            scaling: As in `attend`, as the others.
            sliding_window: See there.
            softcap: See there.
            sinks: See there.

        Returns:
            The step and the layer; None if attention is not that of the kernels, or converts.
        """
        if not isinstance(self._backend, NativeBackend) or dtype != self._pool.dtype:
            return None
        call = _call(heads[2], scaling, sliding_window, softcap, sinks)
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        described = self._backend.described(layer, heads, self._pool, call)
        return self._inputs.arrangement.state, described


def _call(
    key_dim: int,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> LayerCall:
    scaling = key_dim**-0.5 if scaling is None else scaling
    return LayerCall(scaling=scaling, sliding_window=sliding_window, softcap=softcap, sinks=sinks)
