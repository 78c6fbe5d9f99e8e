"""The CPU kernels on torch tensors: checks, addresses, and gradients where training needs them."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from treepo import core
from treepo.core import Activation, AttentionLayer, AttentionStep, Element
from treepo.engine.threads import gomp_parallel
from treepo.errors import InvalidInputError

T = TypeVar("T")

ELEMENTS = {torch.float32: Element.F32, torch.bfloat16: Element.BF16}
"""Number formats that kernels read and write; they compute in float32."""


class Kernels:
    """CPU kernels on torch's own threads.

    Attributes:
        level: Instruction set: portable, neon, avx2, avx512 or avx512_bf16.
    """

    def __init__(self, num_threads: int | None = None, *, level: str | None = None) -> None:
        """Choose threads and instruction set.

        Args:
            num_threads: torch's number if absent. They are torch's own OpenMP threads where that
                library can be found, and a parked pool elsewhere.
            level: The fastest of this processor if absent.

        Raises:
            InvalidInputError: If this processor lacks the level.
        """
        self._gomp_parallel = gomp_parallel()
        self._follows_torch = num_threads is None
        threads = torch.get_num_threads() if num_threads is None else num_threads
        self._parked = core.Kernels(threads, gomp_parallel=self._gomp_parallel, level=level)
        self._kernels = self._parked
        self.level = self._kernels.level

    @property
    def num_threads(self) -> int:
        """Threads that share a kernel's work."""
        threads: int = self._kernels.num_threads
        return threads

    def follow_torch(self) -> None:
        """Use as many threads as torch does, unless a number was given."""
        threads = torch.get_num_threads()
        if self._follows_torch and threads != self.num_threads:
            self._parked = core.Kernels(
                threads, gomp_parallel=self._gomp_parallel, level=self.level
            )
            self._kernels = self._parked

    def awake(self, function: Callable[[], T]) -> T:
        """Call a function, and meanwhile keep the threads of these kernels from sleeping.

        Waking a thread takes longer than a kernel on a few rows. The threads are torch's: its own
        operators run on the caller's thread alone inside the function.
        """
        if self._kernels is not self._parked:
            return function()

        def call(awake: core.Kernels) -> T:
            self._kernels = awake
            return function()

        try:
            return self._parked.awake(call)
        finally:
            self._kernels = self._parked

    @property
    def native(self) -> core.Kernels:
        """The kernels by address, for callers that check their buffers themselves."""
        return self._kernels

    def attend(
        self, step: AttentionStep, layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Write a step's keys and values to the pool and attend to it.

        Args:
            step: Rows of the step.
            layer: The layer, which names its part of the pool.
            query: [num_tokens, num_heads, key_dim]; any strides, the last dimension contiguous.
            key: [num_tokens, num_kv_heads, key_dim].
            value: [num_tokens, num_kv_heads, value_dim].

        Returns:
            [num_tokens, num_heads, value_dim].
        """
        _check_same_format(query, key, value)
        if not query.shape[0] == key.shape[0] == value.shape[0] or key.shape[1] != value.shape[1]:
            raise _shapes_differ("query, key and value", query, key, value)
        query, key, value = _rowwise(query), _rowwise(key), _rowwise(value)
        output = query.new_empty((query.shape[0], query.shape[1], value.shape[2]))
        self._kernels.attend(
            _element(query),
            step,
            layer,
            _heads(query),
            _heads(key),
            _heads(value),
            output.data_ptr(),
        )
        return output

    def pack(self, weight: Tensor, prepare: Callable[[int, int], None]) -> Tensor:
        """Return a weight in the order in which `linear` reads it, flat.

        Args:
            weight: [out_features, in_features].
            prepare: Called with address and bytes of the result before it is written.
        """
        weight = weight.contiguous()
        shape = weight.shape[1], weight.shape[0]
        element = _element(weight)
        packed = weight.new_empty(self._kernels.packed_len(element, shape))
        prepare(packed.data_ptr(), packed.nbytes)
        rows = weight.data_ptr(), weight.stride(0)
        self._kernels.pack(element, shape, rows, packed.data_ptr())
        return packed

    def linear(
        self,
        x: Tensor,
        packed: Tensor,
        out_features: int,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Return x W^T + bias + residual, [..., out_features], without a gradient.

        Args:
            x: [..., in_features].
            packed: What `pack` returned for W.
            out_features: Rows of W.
            bias: [out_features], contiguous.
            residual: [..., out_features].

        Raises:
            InvalidInputError: If the weight was packed for wider or narrower rows.
        """
        shape = x.shape[-1], out_features
        if packed.numel() != self._kernels.packed_len(_element(packed), shape):
            raise InvalidInputError(
                f"{packed.numel()} packed elements are no weight of {out_features} outputs and "
                f"{x.shape[-1]} inputs"
            )
        summands = [tensor for tensor in (bias, residual) if tensor is not None]
        _check_same_format(x, packed, *summands)
        rows = _matrix(x)
        added = None if residual is None else _matrix(residual)
        output = x.new_empty((*x.shape[:-1], out_features))
        if bias is not None and bias.shape != (out_features,):
            raise _shapes_differ("outputs and bias", output, bias)
        if residual is not None and residual.shape != output.shape:
            raise _shapes_differ("outputs and residual", output, residual)
        self._kernels.linear(
            _element(x),
            rows.shape[0],
            (rows.shape[1], out_features),
            (rows.data_ptr(), rows.stride(0)),
            packed.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if added is None else (added.data_ptr(), added.stride(0)),
            output.data_ptr(),
        )
        return output

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        """Return x * rsqrt(mean(x^2) + eps) * (offset + weight) over the last dimension.

        Args:
            x: [..., d], float32 or bfloat16; a gradient flows if it is asked for.
            weight: [d].
            eps: Added to the mean square.
            offset: 0, or 1 for weights that are stored as a difference from 1.
        """
        if torch.is_grad_enabled():
            output: Tensor = _RmsNorm.apply(x, weight, self, eps, offset)
            return output
        return self._rms_norm(x, weight, eps, offset)

    def _rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        _check_same_format(x, weight)
        if weight.shape != x.shape[-1:]:
            raise _shapes_differ("rows and weight", x, weight)
        rows, weight = _matrix(x), weight.contiguous()
        output = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._kernels.rms_norm(
            _element(rows),
            rows.shape[0],
            rows.shape[1],
            eps,
            offset,
            (rows.data_ptr(), rows.stride(0)),
            weight.data_ptr(),
            output.data_ptr(),
        )
        return output

    def gate(self, activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
        """Return activation(gate) * up, [..., d]; a gradient flows if it is asked for."""
        if torch.is_grad_enabled():
            output: Tensor = _Gate.apply(gate, up, self, activation)
            return output
        return self._gate(activation, gate, up)

    def activate(self, activation: Activation, x: Tensor) -> Tensor:
        """Return activation(x), [..., d]; a gradient flows if it is asked for."""
        if not x.numel():
            return x
        return self.gate(activation, x, x.new_ones(x.shape[-1]).expand_as(x))

    def _gate(self, activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
        _check_same_format(gate, up)
        if gate.shape != up.shape:
            raise _shapes_differ("gate and up", gate, up)
        gate_rows, up_rows = _matrix(gate), _matrix(up)
        output = torch.empty(gate.shape, dtype=gate.dtype)
        self._kernels.gate(
            _element(gate),
            gate_rows.shape[0],
            gate_rows.shape[1],
            activation,
            (gate_rows.data_ptr(), gate_rows.stride(0)),
            (up_rows.data_ptr(), up_rows.stride(0)),
            output.data_ptr(),
        )
        return output

    def can_rotate(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> bool:
        """Whether `rotate` takes these tensors."""
        return (
            query.dtype == key.dtype == cos.dtype == sin.dtype
            and cos.shape == sin.shape
            and query.shape[2] == key.shape[2]
            and query.dtype in ELEMENTS
            and query.device.type == "cpu"
            and query.shape[0] == 1
            and cos.dim() == 3
            and cos.shape[0] == 1
            and cos.shape[1] == query.shape[2]
            and cos.shape[2] % 2 == 0
            and cos.shape[2] <= query.shape[3]
            and query.shape[3] == key.shape[3]
        )

    def rotate(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate the halves of queries and keys; gradients flow if they are asked for.

        Args:
            query: [1, num_heads, num_tokens, head_dim].
            key: [1, num_kv_heads, num_tokens, head_dim].
            cos: [1, num_tokens, rotary_dim].
            sin: The same.

        Returns:
            Both, shapes as given.
        """
        if torch.is_grad_enabled():
            rotated: tuple[Tensor, Tensor] = _Rotate.apply(query, key, cos, sin, self)
            return rotated
        return self._rotate(query, key, cos, sin)

    def _rotate(
        self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        q, k = _rowwise(query[0].transpose(0, 1)), _rowwise(key[0].transpose(0, 1))
        cos, sin = cos.contiguous(), sin.contiguous()
        out_q, out_k = torch.empty(q.shape, dtype=q.dtype), torch.empty(k.shape, dtype=k.dtype)
        self._kernels.rotate(
            _element(q),
            (q.shape[0], q.shape[1], k.shape[1], q.shape[2], cos.shape[2]),
            _heads(q),
            _heads(k),
            cos.data_ptr(),
            sin.data_ptr(),
            out_q.data_ptr(),
            out_k.data_ptr(),
        )
        return out_q.transpose(0, 1)[None], out_k.transpose(0, 1)[None]

    def token_logprobs(
        self, logits: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Return what sampling records of a token: its log-prob, and the entropy of its row.

        Args:
            logits: [num_rows, vocab_size], rows contiguous.
            targets: i64 [num_rows].
            temperature: Divisor of the logits, above 0.

        Returns:
            f32 [num_rows] each, in nats, without a gradient; all NaN if a logit is not finite.
        """
        results = np.empty((2, len(targets)), dtype=np.float32)
        bad_row = self._kernels.token_logprobs(
            _element(logits),
            (logits.data_ptr(), *logits.shape, logits.stride(0)),
            targets.numpy(),
            temperature,
            results[0],
            results[1],
        )
        if bad_row is not None:
            results[:] = np.nan
        return torch.from_numpy(results[0]), torch.from_numpy(results[1])


def _element(x: Tensor) -> Element:
    element = ELEMENTS.get(x.dtype)
    if element is None or x.device.type != "cpu":
        raise InvalidInputError(
            f"the kernels take float32 and bfloat16 on a CPU, not {x.dtype} on {x.device}"
        )
    return element


def _check_same_format(first: Tensor, *others: Tensor) -> None:
    """Refuse mixed formats: a kernel reads all its buffers in one."""
    for other in others:
        if other.dtype != first.dtype:
            raise InvalidInputError(
                f"a kernel takes tensors of one number format, not {first.dtype} and {other.dtype}"
            )


def _shapes_differ(names: str, *tensors: Tensor) -> InvalidInputError:
    shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
    return InvalidInputError(f"the shapes of {names} do not fit together: {shapes}")


def _heads(x: Tensor) -> tuple[int, int, int]:
    """Address and strides of [num_tokens, num_heads, dim]."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def _rowwise(x: Tensor) -> Tensor:
    """The tensor, copied unless its last dimension is contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _matrix(x: Tensor) -> Tensor:
    """[..., d] as [n, d] with contiguous rows, without a copy where the strides allow it."""
    return _rowwise(x[0] if x.dim() == 3 and x.shape[0] == 1 else x.reshape(-1, x.shape[-1]))


class _RmsNorm(torch.autograd.Function):
    """The kernel forward; backward by the derivative of the formula."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, kernels: Kernels, eps: float, offset: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = eps, offset
        return kernels._rms_norm(x, weight, eps, offset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        eps, offset = ctx.settings
        scale = offset + weight.float() if offset or weight.dtype != torch.float32 else weight
        wide, grad_wide = x.float(), grad.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        normal = wide * inverse
        slope = grad_wide * scale
        grad_x = inverse * (slope - normal * (slope * normal).mean(-1, keepdim=True))
        grad_weight = (grad_wide * normal).flatten(0, -2).sum(0)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None, None, None


class _Gate(torch.autograd.Function):
    """The kernel forward; backward by torch's own derivative of the activation."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, kernels: Kernels, activation: Activation
    ) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return kernels._gate(activation, gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad_active = grad * up
        if ctx.activation == Activation.SILU:
            grad_gate = torch.ops.aten.silu_backward(grad_active, gate)
            active = F.silu(gate)
        else:
            form = "tanh" if ctx.activation == Activation.GELU_TANH else "none"
            grad_gate = torch.ops.aten.gelu_backward(grad_active, gate, approximate=form)
            active = F.gelu(gate, approximate=form)
        grad_up = grad * active if ctx.needs_input_grad[1] else None
        return grad_gate, grad_up, None, None


class _Rotate(torch.autograd.Function):
    """The kernel forward; backward the transposed rotation."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, kernels: Kernels
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return kernels._rotate(query, key, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = (x[:, None] for x in ctx.saved_tensors)
        return _rotated_back(grad_q, cos, sin), _rotated_back(grad_k, cos, sin), None, None, None


def _rotated_back(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Multiply [1, num_heads, num_tokens, head_dim] by the transpose of the rotation."""
    rotary_dim = cos.shape[-1]
    turned, rest = grad[..., :rotary_dim], grad[..., rotary_dim:]
    low, high = (turned * sin).chunk(2, dim=-1)
    back = turned * cos + torch.cat([high, -low], dim=-1)
    return torch.cat([back, rest], dim=-1) if rest.shape[-1] else back
