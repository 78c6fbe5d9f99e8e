"""Which modules of a model stand around its decoder layers."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from treepo.engine.fused.chain import LayerChain
from treepo.engine.fused.direct import Ends
from treepo.engine.fused.linear import PackedLinear
from treepo.engine.fused.modules import norm_settings
from treepo.engine.fused.whole import Norm, WholeLayers


def find_ends(
    model: PreTrainedModel, chain: LayerChain, linears: Sequence[PackedLinear], whole: WholeLayers
) -> Ends | None:
    """Return what looks like a model's ends; None if something is missing.

    Args:
        model: The model.
        chain: Its layers as one.
        linears: Its packed layers.
        whole: Its layers, by the kernels.
    """
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    packed = [linear for linear in linears if linear.modules == (head,)]
    if len(chain.owners) != 1 or type(embedding) is not nn.Embedding or not packed:
        return None
    if embedding.max_norm is not None:  # A lookup changes the weight.
        return None
    children = list(chain.owners[0].children())
    rotaries = [x for x in children if type(x).__name__.endswith("RotaryEmbedding")]
    norms = [
        Norm(whole.kernels, x, *settings)
        for x in children
        if (settings := norm_settings(x)) is not None
    ]
    if len(norms) != 1 or len(rotaries) > 1:
        return None
    return Ends(embedding, rotaries[0] if rotaries else None, norms[0], packed[0])
