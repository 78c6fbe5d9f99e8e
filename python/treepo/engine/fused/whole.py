"""Decoder layers that the kernels compute in one call, where nothing has to be kept for gradients.

A step of few rows is hundreds of kernels that take microseconds each; calling them one by one from
Python takes as long. Where each layer reads what the one before it returned, and nothing else
happens between them, the first computes all and the others hand on its result. Whether the layers
are still what the kernels know is looked up once a step, for all of them. The bits are those of the
single calls, which training makes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from treepo.core import Activation, AttentionLayer, AttentionStep, DecoderLayer
from treepo.engine.fused.linear import PackedArgs, PackedLinear, Panels
from treepo.engine.kernels import ELEMENTS, Kernels
from treepo.errors import UnsupportedModelError

_Norm = tuple[int, int, float, float]
_Key = tuple[AttentionLayer, list[PackedArgs], list[_Norm]]
_Attention = tuple[AttentionStep, AttentionLayer]


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
    """The decoder layers of a model, by one call of the kernels for each or for all.

    Attributes:
        kernels: They compute.
        modules: The layers, in order.
        are_chain: Whether each layer reads what the one before it returned, all with one rotary
            embedding, and nothing else happens to it: then the first may compute all.
    """

    def __init__(self, kernels: Kernels) -> None:
        """Start without layers; the kernels get to know them in the first step."""
        self.kernels = kernels
        self.modules: list[nn.Module] = []
        self.are_chain = False
        self._parts: list[Parts] = []
        self._rotated: list[int | None] = []
        self._linears: list[PackedLinear] = []
        self._norms: list[Norm] = []
        self._known: _Known | None = None

    def add(self, module: nn.Module, parts: Parts) -> "WholeLayer":
        """Return one more layer, which consists of these parts."""
        self.modules.append(module)
        self._parts.append(parts)
        self._rotated.append(parts.heads[2] if parts.rotates else None)
        self._linears += parts.linears
        self._norms += parts.all_norms
        return WholeLayer(self, len(self._parts) - 1)

    def rotated_dim(self, layers: slice) -> int | None:
        """Width of the narrowest heads that are rotated in some layers; None if none are."""
        return min((dim for dim in self._rotated[layers] if dim is not None), default=None)

    def in_step(self, context: Any, x: Tensor) -> "LayersInStep | None":
        """Return the layers in the step of a context; None if their parts must compute it.

        Args:
            context: Of attention.
            x: Input of a layer, [1, num_tokens, width].
        """
        panels = [linear.panels for linear in self._linears]
        weights = [norm.weight for norm in self._norms]
        attention = _attention(context, self._parts[0], x.dtype)
        if attention is None or not _fit(x, panels, weights):
            return None
        packed = [x for x in panels if x is not None]
        step, of_first = attention
        norms = [norm.described(weight) for norm, weight in zip(self._norms, weights, strict=True)]
        key = of_first, [x.described for x in packed], norms
        known = self._known
        if known is None or known.key != key:
            layers = self._described(context, x.dtype, *key[1:])
            known = self._known = _Known(key, layers, [x.detach() for x in weights])
        are_chain = self.are_chain and not _are_hooked(self.modules)
        return LayersInStep(step, known, packed, x, are_chain)

    def _described(
        self, context: Any, dtype: torch.dtype, panels: list[PackedArgs], norms: list[_Norm]
    ) -> list[DecoderLayer]:
        """The layers as the kernels know them."""
        of_panels, of_norms = iter(panels), iter(norms)
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
        are_chain: Whether the first may compute all of them.
    """

    def __init__(
        self, step: AttentionStep, known: _Known, panels: list[Panels], x: Tensor, are_chain: bool
    ) -> None:
        """Take the parts; the shape and number format are those of `x`."""
        self.step = step
        self.layers = known.layers
        self.are_chain = are_chain
        self._shape, self._dtype = x.shape, x.dtype
        # Held: another thread may pack the weights anew or replace a norm meanwhile.
        self._held = (panels, known.weights)
        self._rotary: Any = None
        self._angles: tuple[int, int, int] | None = None
        self._output: Tensor | None = None
        self._num_done = 0

    def fits(self, x: Tensor) -> bool:
        """Whether the kernels take this input of a layer."""
        return x.shape == self._shape and x.dtype == self._dtype and x.is_contiguous()

    def angles(self, rotary: Any) -> tuple[int, int, int] | None:
        """Width, cosines and sines, [1, num_tokens, width] each, where they fit."""
        if rotary is not self._rotary:  # Mostly it is the one of the layer before.
            self._rotary, self._angles = rotary, self._described(*rotary)
        return self._angles

    def _described(self, cos: Tensor, sin: Tensor) -> tuple[int, int, int] | None:
        dim = cos.shape[-1]
        fits = (
            cos.shape == sin.shape == (1, self._shape[1], dim)
            and cos.dtype == sin.dtype == self._dtype
            and dim % 2 == 0
            and cos.is_contiguous()
            and sin.is_contiguous()
        )
        return (dim, cos.data_ptr(), sin.data_ptr()) if fits else None

    def all_done(self, output: Tensor, rotary: Any) -> None:
        """Take note that the first layer computed all."""
        self._output, self._rotary, self._num_done = output, rotary, 1

    def hand_on(self, index: int, x: Tensor, rotary: Any) -> Tensor | None:
        """Return the output of layer `index` if the first one computed all.

        Raises:
            UnsupportedModelError: It is not the turn of this layer, or its input is another one.
        """
        if self._output is None:
            return None
        if x is not self._output or index != self._num_done or rotary is not self._rotary:
            raise _no_chain(f"decoder layer {index} does not go on where the one before it ended")
        self._num_done += 1
        return x

    def check_is_over(self) -> None:
        """Check that every layer had its turn.

        Raises:
            UnsupportedModelError: The model left out some.
        """
        if self._output is not None and self._num_done != len(self.layers):
            raise _no_chain(f"{self._num_done} of {len(self.layers)} decoder layers ran")


def _no_chain(found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{found}, and did when the model was loaded; make a new engine for the changed model, or "
        "set packing to never"
    )


class WholeLayer:
    """A decoder layer by one call of the kernels."""

    def __init__(self, layers: WholeLayers, index: int) -> None:
        """Name its place among the layers."""
        self._layers = layers
        self._index = index

    def __call__(self, x: Tensor, rotary: Any, context: Any) -> Tensor | None:
        """Return the output for x [1, num_tokens, width]; None if the parts must compute it.

        They do with gradients, where attention is not that of the kernels, and for an engine whose
        layers are others: several engines may run one model at once.
        """
        find = getattr(context, "layers_in_step", None)
        if find is None or torch.is_grad_enabled():
            return None
        in_step: LayersInStep | None = find(x)
        if in_step is None:
            return None
        output = in_step.hand_on(self._index, x, rotary)
        if output is not None or context.layers is not self._layers:
            return output
        are_all = in_step.are_chain and self._index == 0
        which = slice(0, None) if are_all else slice(self._index, self._index + 1)
        angles, rotated_dim = None, self._layers.rotated_dim(which)
        if rotated_dim is not None:
            angles = in_step.angles(rotary)
        if not in_step.fits(x) or (rotated_dim and (angles is None or angles[0] > rotated_dim)):
            return None
        output = torch.empty_like(x)
        self._layers.kernels.native.decoder_layers(
            in_step.layers[which],
            in_step.step,
            x.shape[1],
            angles,
            (x.data_ptr(), x.shape[2]),
            output.data_ptr(),
        )
        if are_all:
            in_step.all_done(output, rotary)
        return output


def _are_hooked(modules: list[nn.Module]) -> bool:
    """Whether something may happen between modules: hooks of theirs or of all modules."""
    return bool(_global_forward_hooks or _global_forward_pre_hooks) or any(
        module._forward_hooks or module._forward_pre_hooks for module in modules
    )


def _attention(context: Any, parts: Parts, dtype: torch.dtype) -> _Attention | None:
    attention: _Attention | None = context.native(parts.module, parts.heads, dtype, **parts.call)
    return attention


def _fit(x: Tensor, panels: list[Panels | None], norms: list[Tensor]) -> bool:
    """Whether packed weights and norms are there in the format of x, and as wide as it."""
    return (
        x.dim() == 3
        and len(x) == 1
        and all(of is not None and of.dtype == x.dtype for of in panels)
        and all(weight.dtype == x.dtype and weight.stride(0) == 1 for weight in norms)
        and len(norms[0]) == x.shape[-1]
    )
