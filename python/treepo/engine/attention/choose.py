"""Which attention back end samples."""

import torch

from treepo.config import Attention
from treepo.engine.attention.base import AttentionBackend
from treepo.engine.attention.native import NativeBackend
from treepo.engine.attention.torch_backend import TorchBackend
from treepo.engine.hook import KVShapes
from treepo.engine.kernels import ELEMENTS, Kernels
from treepo.engine.kv import choose_gathered_slots
from treepo.errors import UnsupportedModelError


def make_backend(
    attention: Attention, shapes: KVShapes, kernels: Kernels | None, device: torch.device
) -> AttentionBackend:
    """Return the back end that the config asks for.

    Args:
        attention: The config's choice.
        shapes: Layers and number format of the pool.
        kernels: CPU kernels; None where they do not apply.
        device: Where the pool lives.

    Raises:
        UnsupportedModelError: If the kernels are asked for and do not apply.
    """
    is_native = kernels is not None and shapes.dtype in ELEMENTS
    if attention is Attention.NATIVE and not is_native:
        raise UnsupportedModelError(
            f"attention=native runs on a CPU in float32 and bfloat16, not in {shapes.dtype} on "
            f"{device}; set attention to torch or auto"
        )
    if kernels is not None and is_native and attention is not Attention.TORCH:
        return NativeBackend(kernels)
    slots = choose_gathered_slots(shapes, device)
    return TorchBackend(max_gathered_slots=slots, device=device)
