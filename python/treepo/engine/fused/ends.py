"""Which modules of a model stand around its decoder layers, and whether it has others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from treepo.engine.fused.chain import LayerChain
from treepo.engine.fused.linear import PackedLinear
from treepo.engine.fused.modules import norm_settings
from treepo.engine.fused.whole import Norm, WholeLayers


@dataclass(frozen=True, slots=True)
class Ends:
    """What a model computes around its layers.

    Attributes:
        embedding: Looks tokens up, and does nothing else to them.
        rotary: Cosines and sines of positions; None if no layer rotates.
        norm: Behind the last layer.
        head: Its linear layer.
        path: The modules from the model to the one that has the list of layers, both included.
        places: Each of these but the model, and where it stands: parent, name, module.
    """

    embedding: nn.Embedding
    rotary: nn.Module | None
    norm: Norm
    head: PackedLinear
    path: list[nn.Module]
    places: list[tuple[nn.Module, str, nn.Module]]

    def angles(self, like: Tensor, positions: Tensor) -> Any:
        """Return cosines and sines, [1, num_tokens, rotary_dim] each, or None.

        Args:
            like: Of the model's number format, [1, 1, width].
            positions: i64 [1, num_tokens].
        """
        return None if self.rotary is None else self.rotary(like, positions)

    @property
    def modules(self) -> list[nn.Module]:
        """All whose code a forward runs, but for the layers."""
        return [self.path[0], *(module for *_, module in self.places)]


def find_ends(
    model: PreTrainedModel, chain: LayerChain, linears: Sequence[PackedLinear], whole: WholeLayers
) -> Ends | None:
    """Return a model's ends; None if some are missing or it has parts or weights beside them.

    Args:
        model: The model.
        chain: Its layers as one.
        linears: Its packed layers.
        whole: Its layers, by the kernels.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    packed = [linear for linear in linears if linear.modules == (head,)]
    if len(chain.owners) != 1 or not packed or packed[0].panels is None:
        return None
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None:
        return None  # One that scales, or changes its weight in a lookup.
    [owner] = chain.owners
    children = list(owner.children())
    rotaries = [x for x in children if type(x).__name__.endswith("RotaryEmbedding")]
    norms = [
        Norm(whole.kernels, x, *settings)
        for x in children
        if (settings := norm_settings(x)) is not None
    ]
    if len(norms) != 1 or len(rotaries) > 1:
        return None
    path = [x for x in model.modules() if any(y is owner for y in x.modules())]
    ends = [embedding, head, norms[0].module, *rotaries, *path[1:]]
    places = [
        (parent, name, child)
        for parent in path
        for name, child in parent._modules.items()
        if child is not None and not (parent is owner and list(child.children()) == whole.modules)
    ]
    found = [id(child) for *_, child in places]
    if sorted(found) != sorted(map(id, ends)) or any(_has_own(x) for x in path):
        return None
    rotary = rotaries[0] if rotaries else None
    return Ends(embedding, rotary, norms[0], packed[0], path, places)


def _has_own(module: nn.Module) -> bool:
    """Whether a module has weights beside those of its children."""
    return bool(module._parameters or module._buffers)
