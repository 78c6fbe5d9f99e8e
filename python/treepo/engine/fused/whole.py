"""Decoder layers that the kernels compute in one call, where nothing has to be kept for gradients.

A step of few rows is hundreds of kernels that take microseconds each; calling them one by one from
Python takes as long. Whether the layers are still what the kernels know is looked up once a step,
for all of them. The bits are those of the single calls, which training makes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from treepo.core import Activation, AttentionLayer, AttentionStep, DecoderLayer
from treepo.engine.fused.linear import PackedArgs, PackedLinear, Panels
from treepo.engine.kernels import ELEMENTS, Kernels

_Norm = tuple[int, int, float, float]
_Key = tuple[AttentionLayer, torch.dtype, int, list[PackedArgs], list[Any]]
_Attention = tuple[AttentionStep, AttentionLayer]
_Angles = tuple[int, int, int]


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

    def described(self, weight: Tensor) -> _Norm:
        """Address of its weight, width, eps and offset."""
        return weight.data_ptr(), weight.shape[0], self.eps, self.offset


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

    @property
    def heads(self) -> tuple[int, int, int, int]:
        """Heads of queries, heads of keys, width of a key, width of a value."""
        dim = self.module.head_dim
        query, key, value = (module.out_features for module in self.linears[0].modules)
        return query // dim, key // dim, dim, value * dim // key

    @property
    def all_norms(self) -> tuple[Norm, ...]:
        """Those of the layer, then those of its heads."""
        return (*self.norms, *(self.head_norms or ()))


class WholeLayers:
    """The decoder layers of a model, by one call of the kernels for each or for several.

    Attributes:
        kernels: They compute.
        modules: The layers, in order.
    """

    def __init__(self, kernels: Kernels) -> None:
        """Start without layers; the kernels get to know them in the first step."""
        self.kernels = kernels
        self.modules: list[nn.Module] = []
        self._parts: list[Parts] = []
        self._rotated: list[int | None] = []
        self._linears: list[PackedLinear] = []
        self._norms: list[Norm] = []
        self._norm_parameters: list[Any] = []
        self._known: _Known | None = None

    def add(self, module: nn.Module, parts: Parts) -> "WholeLayer":
        """Return one more layer, which consists of these parts."""
        self.modules.append(module)
        self._parts.append(parts)
        self._rotated.append(parts.heads[2] if parts.rotates else None)
        self._linears += parts.linears
        self._norms += parts.all_norms
        self._norm_parameters += [norm.module._parameters for norm in parts.all_norms]
        return WholeLayer(self, len(self._parts) - 1)

    def __call__(self, which: slice, x: Tensor, rotary: Any, context: Any) -> Tensor | None:
        """Return the output of some layers, one after another, for x [1, num_tokens, width].

        None if their parts must compute it: they do with gradients, where attention is not that of
        the kernels, and for an engine whose layers are others (several engines may run one model).

        Args:
            which: The layers.
            x: Input of the first.
            rotary: Cosines and sines, [1, num_tokens, rotary_dim] each.
            context: Of attention.
        """
        if torch.is_grad_enabled() or getattr(context, "layers", None) is not self:
            return None
        in_step: LayersInStep | None = context.layers_in_step(x.shape, x.dtype)
        if in_step is None or not in_step.fits(x):
            return None
        can_rotate, angles = self.angles(which, in_step, rotary)
        if not can_rotate:
            return None
        output = torch.empty_like(x)
        self.kernels.native.decoder_layers(
            in_step.layers[which],
            in_step.step,
            x.shape[1],
            angles,
            (x.data_ptr(), x.shape[2]),
            output.data_ptr(),
        )
        return output

    def angles(
        self, which: slice, in_step: "LayersInStep", rotary: Any
    ) -> tuple[bool, _Angles | None]:
        """Return whether these layers are rotated by the kernels, and by what, if any is.

        Args:
            which: The layers.
            in_step: They in the step.
            rotary: Cosines and sines, [1, num_tokens, rotary_dim] each.
        """
        widths = [dim for dim in self._rotated[which] if dim is not None]
        if not widths:
            return True, None
        angles = None if rotary is None else in_step.angles(rotary)
        return angles is not None and angles[0] <= min(widths), angles

    def in_step(self, context: Any, shape: torch.Size, dtype: torch.dtype) -> "LayersInStep | None":
        """Return the layers in the step of a context; None if their parts must compute it.

        Args:
            context: Of attention.
            shape: Of the input of a layer: 1, num_tokens, width.
            dtype: Its number format.
        """
        attention = _attention(context, self._parts[0], dtype)
        if attention is None or len(shape) != 3 or shape[0] != 1:
            return None
        step, of_first = attention
        panels = [panels for linear in self._linears if (panels := linear.panels) is not None]
        if len(panels) < len(self._linears):
            return None
        weights: list[Any] = [parameters["weight"] for parameters in self._norm_parameters]
        # By functions that are called from C: each of many tensors is looked at in every step.
        at = [list(map(function, weights)) for function in _PLACE]
        described = list(map(_DESCRIBED, panels))
        key = of_first, dtype, shape[-1], described, at
        known = self._known
        if known is None or known.key != key:
            if not _fit(shape[-1], dtype, panels, weights):
                return None
            layers = self._described(context, dtype, described, weights)
            known = self._known = _Known(key, layers, [x.detach() for x in weights])
        return LayersInStep(step, known, panels, shape, dtype)

    def _described(
        self, context: Any, dtype: torch.dtype, panels: list[PackedArgs], weights: list[Tensor]
    ) -> list[DecoderLayer]:
        """The layers as the kernels know them."""
        of_panels, of_norms = iter(panels), map(Norm.described, self._norms, weights)
        layers = []
        for parts in self._parts:
            attention = _attention(context, parts, dtype)
            assert attention is not None
            qkv, output, gate_up, down = islice(of_panels, len(parts.linears))
            of_layer = list(islice(of_norms, len(parts.all_norms)))
            layers.append(
                DecoderLayer(
                    ELEMENTS[dtype],
                    attention[1],
                    parts.activation,
                    rotates=parts.rotates,
                    norms=of_layer[:2],
                    head_norms=of_layer[2:] or None,
                    qkv=qkv,
                    output=output,
                    gate_up=gate_up,
                    down=down,
                )
            )
        return layers


_DESCRIBED = attrgetter("described")
_PLACE = (Tensor.data_ptr, Tensor.numel, Tensor.is_contiguous, attrgetter("dtype"))


@dataclass(frozen=True, slots=True)
class _Known:
    """Layers as the kernels know them, what they were made from, and the norms they read."""

    key: _Key
    layers: list[DecoderLayer]
    weights: list[Tensor]


class LayersInStep:
    """Layers and the rows of one step.

    Attributes:
        step: The rows.
        layers: The layers.
    """

    def __init__(
        self,
        step: AttentionStep,
        known: _Known,
        panels: list[Panels],
        shape: torch.Size,
        dtype: torch.dtype,
    ) -> None:
        """Take the parts."""
        self.step = step
        self.layers = known.layers
        self._shape, self._dtype = shape, dtype
        # Held: another thread may pack the weights anew or replace a norm meanwhile.
        self._held = (panels, known.weights)
        self._rotary: Any = None
        self._angles: _Angles | None = None

    def fits(self, x: Tensor) -> bool:
        """Whether the kernels take this input of a layer."""
        return x.shape == self._shape and x.dtype == self._dtype and x.is_contiguous()

    def angles(self, rotary: Any) -> _Angles | None:
        """Width, cosines and sines, [1, num_tokens, width] each, where they fit."""
        if rotary is not self._rotary:  # Mostly it is the one of the layer before.
            self._rotary, self._angles = rotary, self._described(*rotary)
        return self._angles

    def _described(self, cos: Tensor, sin: Tensor) -> _Angles | None:
        dim = cos.shape[-1]
        fits = (
            cos.shape == sin.shape == (1, self._shape[1], dim)
            and cos.dtype == sin.dtype == self._dtype
            and dim % 2 == 0
            and cos.is_contiguous()
            and sin.is_contiguous()
        )
        return (dim, cos.data_ptr(), sin.data_ptr()) if fits else None


class WholeLayer:
    """A decoder layer by one call of the kernels."""

    def __init__(self, layers: WholeLayers, index: int) -> None:
        """Name its place among the layers."""
        self._layers = layers
        self._which = slice(index, index + 1)

    def __call__(self, x: Tensor, rotary: Any, context: Any) -> Tensor | None:
        """Return its output, or None, as `WholeLayers` does."""
        return self._layers(self._which, x, rotary, context)


def _attention(context: Any, parts: Parts, dtype: torch.dtype) -> _Attention | None:
    attention: _Attention | None = context.native(parts.module, parts.heads, dtype, **parts.call)
    return attention


def _fit(width: int, dtype: torch.dtype, panels: list[Panels], norms: list[Tensor]) -> bool:
    """Whether packed weights and norms are in a number format, and as wide as a layer's input."""
    return (
        all(of.dtype == dtype for of in panels)
        and all(weight.dtype == dtype and weight.is_contiguous() for weight in norms)
        and len(norms[0]) == width
    )
