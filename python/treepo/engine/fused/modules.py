"""Which modules a kernel can stand in for: RMS norms, gated feed-forward layers, rotary embedding.

They are recognised by their structure; what a candidate really computes is checked on the model
(`treepo.engine.fused.build`).
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from treepo.core import Activation
from treepo.engine.fused.overlay import Replacement, forward_of
from treepo.engine.kernels import Kernels

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
}
_ACTIVATION_NAMES = ("act_fn", "act", "activation_fn")
_ROTARY = "apply_rotary_pos_emb"
_ROTARY_PARAMETERS = ["q", "k", "cos", "sin", "unsqueeze_dim"]


def norms(model: nn.Module, kernels: Kernels) -> Iterator[Replacement]:
    """Yield replacements of the RMS norms whose weight is as wide as their input."""
    for module in model.modules():
        settings = norm_settings(module)
        if settings is not None:
            yield forward_of(module, _norm_forward(module, kernels, *settings))


def norm_settings(module: nn.Module) -> tuple[float, float] | None:
    """Return eps and offset of an RMS norm (see `Kernels.rms_norm`); None if it is no such norm."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or weight is None or eps is None:
        return None
    if weight.dim() != 1 or list(module.children()):
        return None
    offset = _norm_offset(module, float(eps))
    return None if offset is None else (float(eps), offset)


def _norm_offset(module: nn.Module, eps: float) -> float | None:
    """Return what is added to the weight, 0 or 1 (Gemma); None if the module is something else."""
    weight: Any = module.weight
    x = torch.arange(2 * len(weight), device=weight.device).add(1).sin().view(2, -1)
    x = x.to(weight.dtype)
    normal = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    with torch.no_grad():
        got = module(x).float()
        for offset in (0.0, 1.0):
            expected = normal * (offset + weight.float())
            tolerance = 4 * torch.finfo(weight.dtype).eps * float(expected.abs().max())
            if float((got - expected).abs().max()) <= tolerance:
                return offset
    return None


def _norm_forward(
    module: nn.Module, kernels: Kernels, eps: float, offset: float
) -> Callable[[Tensor], Tensor]:
    parameters: Any = module._parameters

    def forward(hidden_states: Tensor) -> Tensor:
        return kernels.rms_norm(hidden_states, parameters["weight"], eps, offset)

    return forward


def gates(model: nn.Module, kernels: Kernels) -> Iterator[Replacement]:
    """Yield replacements of layers that compute down(act(gate(x)) * up(x))."""
    for module in model.modules():
        activation = gate_activation(module)
        if activation is not None:
            children = dict(module.named_children())
            yield forward_of(module, _gate_forward(children, kernels, activation))


def gate_activation(module: nn.Module) -> Activation | None:
    """Return the activation of a gated feed-forward layer; None if it is something else."""
    children = dict(module.named_children())
    if set(children) != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return None
    return _activation(children["act_fn"])


def _activation(function: nn.Module) -> Activation | None:
    x = torch.linspace(-6.0, 6.0, 64)
    try:
        got = function(x)
    except (TypeError, RuntimeError, ValueError):  # It is something else, by the same name.
        return None
    if not isinstance(got, Tensor) or got.shape != x.shape:
        return None
    for activation, reference in _ACTIVATIONS.items():
        if torch.allclose(got, reference(x), rtol=1e-6, atol=1e-6):
            return activation
    return None


def _gate_forward(
    children: dict[str, nn.Module], kernels: Kernels, activation: Activation
) -> Callable[[Tensor], Tensor]:
    gate, up, down = (children[name] for name in ("gate_proj", "up_proj", "down_proj"))

    def forward(x: Tensor) -> Tensor:
        output: Tensor = down(kernels.gate(activation, gate(x), up(x)))
        return output

    return forward


def activations(model: nn.Module, kernels: Kernels) -> Iterator[Replacement]:
    """Yield replacements of the activations that stand alone.

    torch computes one that its threads cut within a vector by another function, so that the bits of
    a row would depend on how many rows there are.
    """
    children = (child for module in model.modules() for child in module._modules.items())
    named = {id(child): child for name, child in children if child and name in _ACTIVATION_NAMES}
    for child in named.values():  # Layers may share one.
        activation = _activation(child)
        if activation is not None:
            yield forward_of(child, partial(kernels.activate, activation))


def rotaries(model: nn.Module, kernels: Kernels) -> Iterator[Replacement]:
    """Yield replacements of the rotary functions in the source files of the model's modules."""
    names = {type(module).__module__ for module in model.modules()}
    for name in sorted(names):
        function = rotary_function(name, kernels)
        if function is not None:
            yield Replacement(sys.modules[name], _ROTARY, _rotary(function, kernels))


def rotary_of(module: nn.Module, kernels: Kernels) -> Callable[..., Any] | None:
    """Return the rotary function of a module's source file, by the kernel; None if it has none."""
    function = rotary_function(type(module).__module__, kernels)
    return None if function is None else _rotary(function, kernels)


def has_rotary(module: nn.Module) -> bool:
    """Whether a module's source file has a rotary function, whatever it computes."""
    return hasattr(sys.modules.get(type(module).__module__), _ROTARY)


def rotary_function(source: str, kernels: Kernels) -> Callable[..., Any] | None:
    """Return the rotary function of a source file if the kernel computes the same."""
    function: Callable[..., Any] | None = getattr(sys.modules.get(source), _ROTARY, None)
    if function is None:
        return None
    parameters = list(inspect.signature(function).parameters)
    is_known = parameters[: len(_ROTARY_PARAMETERS)] == _ROTARY_PARAMETERS
    return function if is_known and _rotates_halves(function, kernels) else None


def _rotates_halves(function: Callable[..., Any], kernels: Kernels) -> bool:
    """Whether a function turns the halves of a vector; some families turn neighbouring pairs."""
    query = torch.linspace(-1.0, 1.0, 2 * 3 * 8).sin().view(1, 2, 3, 8)
    key = query[:, :1].flip(-1)
    angles = torch.linspace(0.1, 3.0, 3 * 4).view(1, 3, 4).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    with torch.no_grad():
        try:
            own = function(query, key, cos, sin)
        except RuntimeError:  # It takes one angle for two numbers.
            return False
        pairs = zip(own, kernels.rotate(query, key, cos, sin), strict=True)
        return all(x.shape == y.shape and torch.allclose(x, y, atol=1e-6) for x, y in pairs)


def _rotary(function: Callable[..., Any], kernels: Kernels) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the kernel where its conditions hold and `function` elsewhere."""

    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        if unsqueeze_dim != 1 or not kernels.can_rotate(q, k, cos, sin):
            rotated: tuple[Tensor, Tensor] = function(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
            return rotated
        return kernels.rotate(q, k, cos, sin)

    return rotate
