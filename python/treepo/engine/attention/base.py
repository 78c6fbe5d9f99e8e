"""What an attention back end over the paged pool provides."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from torch import Tensor

from treepo.engine.inputs import StepInputs
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
    """Attention of a step's tokens over keys and values in the block pool."""

    name: str
    features: frozenset[Feature]

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, inputs: StepInputs, call: LayerCall
    ) -> Tensor:
        """Attend from every token of a step to the resident tokens of its row.

        Args:
            query: [num_tokens, num_heads, key_dim].
            keys: [num_blocks, block_size, num_kv_heads, key_dim]; the step's own are written.
            values: [num_blocks, block_size, num_kv_heads, value_dim].
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
