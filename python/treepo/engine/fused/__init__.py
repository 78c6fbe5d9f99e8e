"""The same model, faster: packed weights and fused modules, checked on the model itself."""

from treepo.engine.fused.build import build_overlay, retry_direct
from treepo.engine.fused.linear import PackedLinear
from treepo.engine.fused.overlay import Fusion, Overlay
from treepo.engine.fused.products import can_pack, packing, uses_panels

__all__ = [
    "Fusion",
    "Overlay",
    "PackedLinear",
    "build_overlay",
    "can_pack",
    "packing",
    "retry_direct",
    "uses_panels",
]
