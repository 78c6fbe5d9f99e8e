"""Decoder layers that the kernels compute in one call, where nothing has to be kept for gradients.

A step of few rows is hundreds of kernels that take microseconds each; calling them one by one from
Python takes as long. The bits are those of the single calls, which training makes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from treepo.core import Activation, AttentionLayer, DecoderLayer
from treepo.engine.fused.linear import PackedArgs, PackedLinear, Panels
from treepo.engine.kernels import ELEMENTS, Kernels

_Norm = tuple[int, int, float, float]
_Key = tuple[AttentionLayer, list[PackedArgs], list[_Norm]]


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm by the kernel, see `Kernels.rms_norm`."""

    kernels: Kernels
    module: nn.Module
    eps: float
    offset: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return the norm of x [..., d]."""
        return self.kernels.rms_norm(x, self.weight, self.eps, self.offset)

    @property
    def weight(self) -> Tensor:
        """The module's weight now, [d]."""
        weight: Tensor = self.module._parameters["weight"]  # type: ignore[assignment]
        return weight

    def described(self) -> _Norm:
        """Address of the weight, width, eps and offset."""
        return self.weight.data_ptr(), len(self.weight), self.eps, self.offset


@dataclass(frozen=True, slots=True)
class Parts:
    """What a layer consists of.

    Attributes:
        module: The attention module.
        call: What it asks of attention: keywords of `AttentionContext.attend`.
        rotates: Whether queries and keys are rotated by their positions.
        norms: In front of attention and of the feed-forward part.
        head_norms: Of queries and keys.
        linears: Queries, keys and values; output; gate and up; down.
        activation: Function of the gate.
    """

    module: Any
    call: Mapping[str, Any]
    rotates: bool
    norms: tuple[Norm, Norm]
    head_norms: tuple[Norm, Norm] | None
    linears: tuple[PackedLinear, PackedLinear, PackedLinear, PackedLinear]
    activation: Activation


class WholeLayer:
    """A decoder layer in one call of the kernels."""

    def __init__(self, kernels: Kernels, parts: Parts) -> None:
        """Name the parts; the kernels get to know them at the first call."""
        self._kernels = kernels
        self._parts = parts
        self._norms = (*parts.norms, *(parts.head_norms or ()))
        dim = parts.module.head_dim
        query, key, value = (module.out_features for module in parts.linears[0].modules)
        self._heads = (query // dim, key // dim, dim, value * dim // key)
        self._known: tuple[_Key, DecoderLayer] | None = None

    def __call__(self, x: Tensor, rotary: Any, context: Any) -> Tensor | None:
        """Return the output for x [1, num_tokens, width]; None if the parts must compute it.

        They do with gradients, and where attention is not that of the kernels.
        """
        native = getattr(context, "native", None)
        if native is None or torch.is_grad_enabled() or x.dim() != 3 or not x.is_contiguous():
            return None
        attention = native(self._parts.module, self._heads, x.dtype, **self._parts.call)
        angles = self._angles(x, rotary) if self._parts.rotates else None
        if attention is None or (self._parts.rotates and angles is None) or len(x) != 1:
            return None
        # Held during the call: another thread may pack the weights anew meanwhile.
        panels = [linear.panels for linear in self._parts.linears]
        weights = [norm.weight for norm in self._norms]
        if not _fit(x, panels, weights):
            return None
        step, of_layer = attention
        layer = self._described(x.dtype, of_layer, [x for x in panels if x is not None])
        output = torch.empty_like(x)
        self._kernels.native.decoder_layer(
            layer, step, x.shape[1], angles, (x.data_ptr(), x.shape[2]), output.data_ptr()
        )
        return output

    def _angles(self, x: Tensor, rotary: Any) -> tuple[int, int, int] | None:
        """Width, cosines and sines of `rotary`, [1, num_tokens, width] each, where they fit."""
        cos, sin = rotary
        dim = cos.shape[-1]
        fits = (
            cos.shape == sin.shape == (1, x.shape[1], dim)
            and cos.dtype == sin.dtype == x.dtype
            and dim % 2 == 0
            and dim <= self._heads[2]
            and cos.is_contiguous()
            and sin.is_contiguous()
        )
        return (dim, cos.data_ptr(), sin.data_ptr()) if fits else None

    def _described(
        self, dtype: torch.dtype, attention: AttentionLayer, panels: list[Panels]
    ) -> DecoderLayer:
        """The layer as the kernels know it, anew where an address has changed."""
        linears = [x.described() for x in panels]
        norms = [norm.described() for norm in self._norms]
        key, known = (attention, linears, norms), self._known
        if known is not None and known[0] == key:
            return known[1]
        qkv, output, gate_up, down = linears
        layer = DecoderLayer(
            ELEMENTS[dtype],
            attention,
            self._parts.activation,
            norms=norms[:2],
            head_norms=norms[2:] or None,
            qkv=qkv,
            output=output,
            gate_up=gate_up,
            down=down,
        )
        self._known = key, layer
        return layer


def _fit(x: Tensor, panels: list[Panels | None], norms: list[Tensor]) -> bool:
    """Whether packed weights and norms are there in the format of x, and as wide as it."""
    return (
        all(of is not None and of.fits(x.dtype) for of in panels)
        and all(weight.dtype == x.dtype and weight.stride(0) == 1 for weight in norms)
        and len(norms[0]) == x.shape[-1]
    )
