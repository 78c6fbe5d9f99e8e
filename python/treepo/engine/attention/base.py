"""What an attention back end over the paged pool provides."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from torch import Tensor

from treepo.engine.inputs import Arrangement, StepInputs, StepRows
from treepo.engine.kv import KVPool, Layout
from treepo.errors import UnsupportedModelError


class Feature(StrEnum):
    """A layer-specific change of plain softmax attention."""

    SLIDING_WINDOW = "sliding_window"
    SOFTCAP = "softcap"
    SINKS = "sinks"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCall:
    """How one layer wants its attention computed; see `AttentionContext.attend`."""

    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def features(self) -> list[Feature]:
        """Return the features that this call uses."""
        used = {
            Feature.SLIDING_WINDOW: self.sliding_window is not None,
            Feature.SOFTCAP: self.softcap is not None,
            Feature.SINKS: self.sinks is not None,
        }
        return [feature for feature, is_used in used.items() if is_used]


class AttentionBackend(Protocol):
    """Attention of a step's tokens over keys and values in the block pool.

    Attributes:
        name: Its name in messages.
        features: What it implements besides plain softmax attention.
        layout: How it wants the pool.
        reads_groups: Whether it wants to know which rows share blocks.
    """

    name: str
    features: frozenset[Feature]
    layout: Layout
    reads_groups: bool

    def arrange(self, rows: StepRows) -> Arrangement:
        """Prepare a step once for all layers."""
        ...

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
        """Write a step's keys and values, then attend from every token to its row's.

        Every row's are written before any row reads: a row may share blocks with another one that
        is computed in the same step.

        Args:
            layer: The layer's index.
            query: [num_tokens, num_heads, key_dim].
            key: [num_tokens, num_kv_heads, key_dim].
            value: [num_tokens, num_kv_heads, value_dim].
            pool: The block pool, in this back end's layout.
            inputs: The step.
            call: The layer's scaling and features.

        Returns:
            [num_tokens, num_heads, value_dim].
        """
        ...


def check_features(backend: AttentionBackend, features: list[Feature], layer: int) -> None:
    """Refuse a layer that asks `backend` for a feature it lacks.

    Raises:
        UnsupportedModelError: Naming the layer, the feature and the back end.
    """
    for feature in features:
        if feature not in backend.features:
            raise UnsupportedModelError(
                f"layer {layer} uses {feature.value}, which the {backend.name} attention back end "
                "does not implement"
            )
