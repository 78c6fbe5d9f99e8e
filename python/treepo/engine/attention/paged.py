"""The attention context of sampling: write a step's keys and values, then read the pool."""

from torch import Tensor, nn

from treepo.engine.attention.base import AttentionBackend, LayerCall, check_features
from treepo.engine.inputs import StepInputs
from treepo.engine.kv import KVPool


class PagedContext:
    """Attention of one step over a block pool; an `AttentionContext`."""

    def __init__(self, pool: KVPool, backend: AttentionBackend, inputs: StepInputs) -> None:
        """Bind a step's inputs to the pool and the back end that computes it."""
        self._pool = pool
        self._backend = backend
        self._inputs = inputs

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
        """Write the step's keys and values of one layer and attend to the pool.

        Every row's are written before any row reads: a row may share blocks with another one that
        is computed in the same step.

        Shapes as in `treepo.engine.hook.AttentionContext.attend`.
        """
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        call = LayerCall(
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=sinks,
        )
        check_features(self._backend, call.features(), layer)
        self._pool.write(layer, self._inputs.slot_mapping, key[0], value[0])
        keys, values = self._pool.layer(layer)
        output = self._backend.attend(query[0].transpose(0, 1), keys, values, self._inputs, call)
        return output.unsqueeze(0)
