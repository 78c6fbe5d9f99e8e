"""Whole decoder layers as one function: fewer calls, and sums that the products do on their way.

What is recognised is the layer that most families share: norm, attention with rotary embedding,
norm and a gated feed-forward layer, each half added to its input. What a candidate really computes
is checked on the model (`treepo.engine.fused.build`).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from treepo.core import Activation
from treepo.engine.fused.linear import PackedLinear
from treepo.engine.fused.modules import gate_activation, has_rotary, norm_settings, rotary_of
from treepo.engine.fused.overlay import Replacement, forward_of
from treepo.engine.fused.whole import Norm, Parts, WholeLayer, WholeLayers
from treepo.engine.kernels import Kernels

_CHILDREN = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_HEAD_NORMS = ("q_norm", "k_norm")

Rotate = Callable[..., tuple[Tensor, Tensor]]
Packed = Mapping[tuple[nn.Linear, ...], PackedLinear]
AttentionCall = Mapping[str, Any]
"""Keywords of one module's call of `AttentionContext.attend`."""


def layers(
    model: nn.Module,
    whole: WholeLayers,
    linears: Sequence[PackedLinear],
    calls: Mapping[nn.Module, AttentionCall],
) -> Iterator[Replacement]:
    """Yield replacements of the decoder layers whose parts are all known.

    Args:
        model: The model.
        whole: Gets the layers, and has the kernels that they run on.
        linears: The model's packed layers, those with one input packed as one.
        calls: What each attention module asks for.
    """
    packed = {linear.modules: linear for linear in linears}
    for module in model.modules():
        children = dict(module.named_children())
        if is_layer(module) and children["self_attn"] in calls:
            layer = _layer(module, whole, packed, calls[children["self_attn"]])
            if layer is not None:
                yield forward_of(module, _forward(module, layer))


def is_layer(module: object) -> bool:
    """Whether this is a decoder layer with the parts that `layers` looks for, and plain sums."""
    if not isinstance(module, nn.Module) or hasattr(module, "residual_multiplier"):
        return False
    return {x for x, _ in module.named_children()} == _CHILDREN


@dataclass(frozen=True, slots=True)
class _Attention:
    """A layer's attention module and its parts."""

    module: Any
    qkv: PackedLinear
    output: PackedLinear
    head_norms: tuple[Norm, Norm] | None
    rotate: Rotate | None
    call: AttentionCall

    def __call__(self, x: Tensor, residual: Tensor, rotary: Any, context: Any) -> Tensor:
        """Return residual + attention(x)."""
        module = self.module
        shape = (*x.shape[:-1], -1, module.head_dim)
        query, key, value = (y.view(shape) for y in self.qkv(x))
        if self.head_norms is not None:
            query, key = self.head_norms[0](query), self.head_norms[1](key)
        query, key, value = (y.transpose(1, 2) for y in (query, key, value))
        if self.rotate is not None:
            query, key = self.rotate(query, key, *rotary)
        attended = context.attend(module, query, key, value, **self.call)
        return self.output.added_to(residual, attended.flatten(-2))


@dataclass(frozen=True, slots=True)
class _FeedForward:
    """A layer's gated feed-forward module and its parts."""

    kernels: Kernels
    activation: Activation
    gate_up: PackedLinear
    down: PackedLinear

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + down(activation(gate(x)) * up(x))."""
        gate, up = self.gate_up(x)
        return self.down.added_to(residual, self.kernels.gate(self.activation, gate, up))


@dataclass(frozen=True, slots=True)
class _Layer:
    """A decoder layer."""

    attention_norm: Norm
    attention: _Attention
    feed_forward_norm: Norm
    feed_forward: _FeedForward
    whole: WholeLayer

    def __call__(self, x: Tensor, rotary: Any, context: Any) -> Tensor:
        """Return the output for x [1, num_tokens, width], part by part."""
        x = self.attention(self.attention_norm(x), x, rotary, context)
        return self.feed_forward(self.feed_forward_norm(x), x)


def _layer(
    module: nn.Module,
    layers: WholeLayers,
    packed: Packed,
    call: AttentionCall,
) -> _Layer | None:
    children, kernels = dict(module.named_children()), layers.kernels
    norms = [_norm(children[x], kernels) for x in ("input_layernorm", "post_attention_layernorm")]
    attention = _attention(children["self_attn"], kernels, packed, call)
    feed_forward = _feed_forward(children["mlp"], kernels, packed)
    if norms[0] is None or norms[1] is None or attention is None or feed_forward is None:
        return None
    parts = Parts(
        module=attention.module,
        call=call,
        rotates=attention.rotate is not None,
        norms=(norms[0], norms[1]),
        head_norms=attention.head_norms,
        linears=(attention.qkv, attention.output, feed_forward.gate_up, feed_forward.down),
        activation=feed_forward.activation,
    )
    return _Layer(norms[0], attention, norms[1], feed_forward, layers.add(module, parts))


def _norm(module: nn.Module, kernels: Kernels) -> Norm | None:
    settings = norm_settings(module)
    return None if settings is None else Norm(kernels, module, *settings)


def _attention(
    module: nn.Module, kernels: Kernels, packed: Packed, call: AttentionCall
) -> _Attention | None:
    children: dict[str, Any] = dict(module.named_children())
    # Some layers of some families (SmolLM3) have no rotary embedding.
    rotate = rotary_of(module, kernels) if getattr(module, "use_rope", True) else None
    if rotate is None and has_rotary(module) and getattr(module, "use_rope", True):
        return None  # One that the kernel does not compute.
    if not hasattr(module, "head_dim") or not set(_PROJECTIONS) <= set(children):
        return None
    if "position_ids" in inspect.signature(type(module).forward).parameters:
        return None  # It does something with them that a few first tokens need not show.
    qkv = packed.get(tuple(children[name] for name in _PROJECTIONS[:3]))
    output = packed.get((children["o_proj"],))
    others = set(children) - set(_PROJECTIONS)
    head_norms = None
    if others == set(_HEAD_NORMS):
        query, key = (_norm(children[name], kernels) for name in _HEAD_NORMS)
        if query is not None and key is not None:
            head_norms = (query, key)
    if qkv is None or output is None or (others and head_norms is None):
        return None
    return _Attention(module, qkv, output, head_norms, rotate, call)


def _feed_forward(module: nn.Module, kernels: Kernels, packed: Packed) -> _FeedForward | None:
    activation = gate_activation(module)
    if activation is None:
        return None
    children: dict[str, Any] = dict(module.named_children())
    gate_up = packed.get((children["gate_proj"], children["up_proj"]))
    down = packed.get((children["down_proj"],))
    if gate_up is None or down is None:
        return None
    return _FeedForward(kernels, activation, gate_up, down)


def _forward(module: Any, layer: _Layer) -> Callable[..., Tensor]:
    # Where the class's own forward is the place of gradient checkpointing, ours takes over.
    checkpoints = hasattr(type(module).forward, "__wrapped__")

    own = type(module).forward

    def forward(
        hidden_states: Tensor,
        *args: Any,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        treepo: Any = None,
        **others: Any,
    ) -> Tensor:
        if treepo is None or args:  # A plain forward within a rollout, by a judge for instance.
            others["position_embeddings"] = position_embeddings
            plain: Tensor = own(module, hidden_states, *args, **others)
            return plain
        y = layer.whole(hidden_states, position_embeddings, treepo)
        if y is not None:
            return y
        compute = partial(layer, rotary=position_embeddings, context=treepo)
        if checkpoints and module.gradient_checkpointing and module.training:
            recomputed: Tensor = module._gradient_checkpointing_func(compute, hidden_states)
            return recomputed
        return compute(hidden_states)

    return forward
