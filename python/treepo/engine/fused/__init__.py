"""The same model, faster: packed weights and fused modules, checked on the model itself."""

from treepo.engine.fused.build import build_overlay
from treepo.engine.fused.linear import PackedLinear, can_pack
from treepo.engine.fused.overlay import Fusion, Overlay

__all__ = ["Fusion", "Overlay", "PackedLinear", "build_overlay", "can_pack"]
