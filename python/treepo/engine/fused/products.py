"""Products with packed weights, in which a row has the same bits in every batch (law S6).

With AVX2 or more they run on this package's own kernel (`benches/products.py` holds it beside
oneDNN). Elsewhere, and in bfloat16 on processors with AMX, oneDNN does the work, through operators
that are torch's own but private; `can_pack` tries them before anything relies on them.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from treepo.engine.kernels import ELEMENTS, Kernels
from treepo.engine.memory import ask_for_large_pages, enlarge_pages

_PANEL_LEVELS = ("avx2", "avx512", "avx512_bf16")
"""Instruction sets on which the own kernel is known to be fast."""
_MIN_ROWS = 2
"""Rows from which on a row's bits do not depend on their number, in oneDNN."""
_TRIAL = (48, 40)
"""Width and depth of the product that `can_pack` tries."""


class PackedWeight(Protocol):
    """A weight [out_features, in_features] in the order in which its product reads it.

    Attributes:
        panels: What the kernel of this package reads; None if another library does the work.
        shape: [out_features, in_features].
    """

    panels: Tensor | None
    shape: torch.Size

    def product(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """Return x W^T + bias + residual, rounded once.

        Args:
            x: [..., in_features].
            bias: [out_features].
            residual: [..., out_features].
        """
        ...


Pack = Callable[[Tensor, bool], PackedWeight]
"""Packs a weight; whether it stays, and is worth moving to large pages."""


def packing(dtype: torch.dtype, kernels: Kernels) -> Pack | None:
    """Return what packs weights of a number format on this processor; None if nothing does."""
    if uses_panels(dtype, kernels):
        return panels(kernels)
    return onednn if can_pack(dtype) else None


def uses_panels(dtype: torch.dtype, kernels: Kernels) -> bool:
    """Whether `packing` packs for the kernel of this package."""
    if dtype == torch.bfloat16 and _has_tiles() and can_pack(dtype):
        return False
    return dtype in ELEMENTS and kernels.level in _PANEL_LEVELS


def _has_tiles() -> bool:
    """Whether the processor multiplies whole tiles of bfloat16 (AMX), as oneDNN does then."""
    is_supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(is_supported is not None and is_supported())


def panels(kernels: Kernels) -> Pack:
    """Return what packs for the kernel of this package."""
    return lambda weight, stays: _Panels(kernels, weight, stays)


def onednn(weight: Tensor, stays: bool) -> PackedWeight:
    """Pack for oneDNN."""
    return _OneDnn(weight, stays)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch on this processor computes right products with packed weights."""
    out_features, in_features = _TRIAL
    weight = torch.arange(out_features * in_features, dtype=torch.float32).sin()
    weight = weight.view(_TRIAL).to(dtype)
    rows = weight[:3].cos()
    try:
        got = _OneDnn(weight, False).product(rows, None, None)
    except (RuntimeError, AttributeError):
        return False
    expected = rows.double() @ weight.double().T
    tolerance = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
    return bool((got.double() - expected).abs().max() <= tolerance)


class _Panels:
    """Packed for the kernel of this package."""

    def __init__(self, kernels: Kernels, weight: Tensor, stays: bool) -> None:
        self._kernels = kernels
        self.shape = weight.shape
        self.panels: Tensor | None = kernels.pack(
            weight, enlarge_pages if stays else ask_for_large_pages
        )

    def product(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        assert self.panels is not None
        return self._kernels.linear(x, self.panels, self.shape[0], bias, residual)


class _OneDnn:
    """Packed for oneDNN; a lone row is computed twice over."""

    panels: Tensor | None = None

    def __init__(self, weight: Tensor, stays: bool) -> None:
        operators = torch.ops.mkldnn
        packed: Tensor = operators._reorder_linear_weight(weight.contiguous())
        if packed.is_mkldnn and hasattr(operators, "data_ptr"):
            enlarge = enlarge_pages if stays else ask_for_large_pages
            enlarge(operators.data_ptr(packed), operators._nbytes(packed))
        self._packed = packed
        self.shape = weight.shape

    def product(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        num_rows = x.numel() // x.shape[-1]
        if num_rows >= _MIN_ROWS:
            return self._product(x, bias, residual)
        if num_rows == 0:
            return x.new_empty((*x.shape[:-1], self.shape[0]))
        summand = None if residual is None else _doubled(residual)
        return self._product(_doubled(x), bias, summand)[:1].view(*x.shape[:-1], -1)

    def _product(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        operator: Any = torch.ops.mkldnn._linear_pointwise
        product: Tensor
        if residual is None:
            product = operator.default(x, self._packed, bias, "none", [], "")
        else:
            product = operator.binary(x, residual, self._packed, bias, "add")
        return product


def _doubled(x: Tensor) -> Tensor:
    """The only row of a tensor as `_MIN_ROWS` rows."""
    return x.reshape(1, -1).repeat(_MIN_ROWS, 1)
