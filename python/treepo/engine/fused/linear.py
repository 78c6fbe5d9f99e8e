"""Linear layers with packed weights, beside the modules that own them.

Layers that read the same input (query, key and value; gate and up) are packed as one and computed
by the first of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from treepo.engine.fused.products import Pack, PackedWeight

PackedArgs = tuple[int, tuple[int, int], int | None]
"""Address of packed weights, inputs and outputs, address of the bias."""


class Panels(NamedTuple):
    """Packed weights that the kernels of this package read.

    Attributes:
        tensors: The weight, flat (see `Kernels.pack`), and the bias.
        described: They by address, as `DecoderLayer` wants them.
        dtype: Their number format; None if the bias does not fit the weight.
    """

    tensors: tuple[Tensor, Tensor | None]
    described: PackedArgs
    dtype: torch.dtype | None

    @classmethod
    def of(cls, packed: PackedWeight, bias: Tensor | None) -> "Panels | None":
        """Return what was packed; None if another library than this package reads it.

        Args:
            packed: The weight.
            bias: [out_features].
        """
        weight, shape = packed.panels, packed.shape
        if weight is None:
            return None
        fits = bias is None or (bias.dtype == weight.dtype and bias.shape == shape[:1])
        address = None if bias is None else bias.data_ptr()
        described = weight.data_ptr(), (shape[1], shape[0]), address
        return cls((weight, bias), described, weight.dtype if fits else None)


class PackedLinear:
    """The layers that read one input: y_i = x W_i^T + b_i for every layer i.

    Attributes:
        modules: The layers, in the order in which the model calls them.
        panels: The packed weights and biases; None if another library than this package reads them.
    """

    def __init__(self, modules: Sequence[nn.Linear], pack: Pack) -> None:
        """Name the layers; `refresh` packs them.

        Args:
            modules: Layers of equal input width and dtype, all with a bias or all without.
            pack: Packs their weights.
        """
        self.modules = tuple(modules)
        self._pack = pack
        self._sizes = [module.out_features for module in modules]
        self._packed: PackedWeight | None = None
        self.panels: Panels | None = None
        self._bias: Tensor | None = None
        self._seen: list[tuple[int, int]] = []

    def refresh(self, *, force: bool = False) -> bool:
        """Pack the weights if they changed since the last time, or if `force`; True if packed.

        A change is noticed by a tensor's version, which in-place operations raise, and by its
        address. Writing through `.data` is not noticed, nor is the step of a fused optimizer
        unless `torch.autograd.graph.increment_version` follows it.
        """
        parameters = [p for module in self.modules for p in module.parameters(recurse=False)]
        seen = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
        if seen == self._seen and self._packed is not None and not force:
            return False
        with torch.no_grad():
            self._packed = self.panels = None  # Free the old copy before the new one is made.
            # Weights that change once will change again: only the first copy is worth moving.
            stays = not self._seen
            self._packed = self._pack(_joined([module.weight for module in self.modules]), stays)
            biases = [module.bias for module in self.modules if module.bias is not None]
            self._bias = _joined(biases) if biases else None
        self.panels = Panels.of(self._packed, self._bias)
        self._seen = seen
        return True

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return every layer's output for x [..., in_features]; slices of one tensor.

        With gradients the products of the backward pass use the modules' own weights.
        """
        if not torch.is_grad_enabled():
            return self._split(self.product(x))
        weights = [module.weight for module in self.modules]
        biases = [module.bias for module in self.modules if module.bias is not None]
        outputs: tuple[Tensor, ...] = _WithGradient.apply(x, self, *weights, *biases)
        return outputs

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return residual + the only layer's output; rounded once.

        Args:
            residual: [..., out_features].
            x: [..., in_features].
        """
        [module] = self.modules
        if not torch.is_grad_enabled():
            return self.product(x, residual)
        biases = () if module.bias is None else (module.bias,)
        output: Tensor = _AddedWithGradient.apply(residual, x, self, module.weight, *biases)
        return output

    def product(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the layers' outputs side by side, [..., sum of out_features], or a sum with them.

        Args:
            x: [..., in_features].
            residual: What they are added to, of the result's shape.
        """
        assert self._packed is not None
        return self._packed.product(x, self._bias, residual)

    def _split(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y,) if len(self._sizes) == 1 else tuple(y.split_with_sizes(self._sizes, -1))


class _WithGradient(torch.autograd.Function):
    """The packed product forward, plain products backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, linear: PackedLinear, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        num_layers = len(linear.modules)
        ctx.save_for_backward(x, *parameters[:num_layers])
        ctx.num_biases = len(parameters) - num_layers
        return linear._split(linear.product(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, _, *needs_parameters = ctx.needs_input_grad
        return _gradients(ctx, grads, needs_x, needs_parameters)


class _AddedWithGradient(torch.autograd.Function):
    """The packed product added to a residual forward, plain products backward."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, x: Tensor, linear: PackedLinear, *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, parameters[0])
        ctx.num_biases = len(parameters) - 1
        return linear.product(x, residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs_residual, needs_x, _, *needs_parameters = ctx.needs_input_grad
        return (
            grad if needs_residual else None,
            *_gradients(ctx, [grad], needs_x, needs_parameters),
        )


def _gradients(
    ctx: Any, grads: Sequence[Tensor], needs_x: bool, needs_parameters: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of a product's input, the `PackedLinear`, its weights and its biases."""
    x, *weights = ctx.saved_tensors
    rows = x.reshape(-1, x.shape[-1])
    flat = [grad.reshape(len(rows), -1) for grad in grads]
    grad_x = None
    if needs_x:
        grad_x = flat[0] @ weights[0]
        for grad, weight in zip(flat[1:], weights[1:], strict=True):
            grad_x.addmm_(grad, weight)
        grad_x = grad_x.view_as(x)
    grad_weights = [
        grad.T @ rows if wanted else None
        for grad, wanted in zip(flat, needs_parameters[: len(weights)], strict=True)
    ]
    grad_biases = [
        grad.sum(0) if wanted else None
        for grad, wanted in zip(
            flat[: ctx.num_biases], needs_parameters[len(weights) :], strict=True
        )
    ]
    return (grad_x, None, *grad_weights, *grad_biases)


class SharedInput:
    """Hands out the outputs that the first layer of a `PackedLinear` computed for all of them."""

    def __init__(self, linear: PackedLinear) -> None:
        """Start with nothing computed."""
        self._linear = linear
        self._input: Tensor | None = None
        self._outputs: list[Tensor | None] = []
        self._num_left = 0

    def forward_of(self, index: int) -> Any:
        """Return the forward of layer `index`."""

        def forward(x: Tensor) -> Tensor:
            if self._input is not x or self._outputs[index] is None:
                self._compute(x)
            output = self._outputs[index]
            assert output is not None
            self._outputs[index] = None
            self._num_left -= 1
            if self._num_left == 0:
                self._input = None
            return output

        return forward

    def clear(self) -> None:
        """Forget outputs that nobody asked for."""
        self._input, self._outputs, self._num_left = None, [], 0

    def _compute(self, x: Tensor) -> None:
        self._outputs = list(self._linear(x))
        self._input, self._num_left = x, len(self._outputs)


def layers_by_input(calls: Sequence[tuple[nn.Linear, Tensor]]) -> list[list[nn.Linear]]:
    """Group layers that a forward pass called one after another on the same tensor.

    Args:
        calls: Each call's layer and input, in order, inputs kept alive.

    Returns:
        Groups of layers that can be packed as one; a layer that is called twice stands alone.
    """
    counts: dict[int, int] = {}
    for module, _ in calls:
        counts[id(module)] = counts.get(id(module), 0) + 1
    groups: list[list[nn.Linear]] = []
    previous: Tensor | None = None
    for module, x in calls:
        if counts[id(module)] > 1:
            if not any(module is group[0] for group in groups):
                groups.append([module])
            previous = None
        elif previous is x and _fits(groups[-1][0], module):
            groups[-1].append(module)
        else:
            groups.append([module])
            previous = x
    return groups


def _fits(first: nn.Linear, other: nn.Linear) -> bool:
    return (
        first.in_features == other.in_features
        and first.weight.dtype == other.weight.dtype
        and (first.bias is None) == (other.bias is None)
    )


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].detach() if len(tensors) == 1 else torch.cat([x.detach() for x in tensors])
