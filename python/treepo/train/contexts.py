"""Which attention an update runs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from treepo.config import TreeAttention
from treepo.engine.hook import AttentionContext
from treepo.train.attention import DensePackedContext, PackedContext
from treepo.train.flex_attention import FlexContext
from treepo.train.pack import PackedForest

ContextClass = Callable[[PackedForest, torch.device], AttentionContext]


def packed_context(
    packed: PackedForest, device: torch.device, kind: TreeAttention = TreeAttention.AUTO
) -> AttentionContext:
    """Returns the attention context of a packed forest.

    Args:
        packed: the forest that the model is about to run on.
        device: where the model lives.
        kind: which one; `auto` is ancestor chains on a CPU and the dense mask elsewhere.
    """
    if kind is TreeAttention.AUTO:
        kind = TreeAttention.CHAINS if device.type == "cpu" else TreeAttention.DENSE
    contexts: dict[TreeAttention, ContextClass] = {
        TreeAttention.CHAINS: PackedContext,
        TreeAttention.DENSE: DensePackedContext,
        TreeAttention.FLEX: FlexContext,
    }
    return contexts[kind](packed, device)
