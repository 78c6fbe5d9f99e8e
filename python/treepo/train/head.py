"""The output head: which logits a model computes, and log-probs a chunk of rows at a time.

Log-probs come from torch or, with an `ExactForward`, from the code that samples: the same logits
then give the same bits. The gradient is torch's in both cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from treepo.engine.exact import ExactForward
from treepo.engine.hook import evaluating, plain_attention
from treepo.errors import UnsupportedModelError

MAX_CHUNK_LOGITS = 1 << 24
"""Logits of one chunk, rows times vocabulary; twice as many numbers exist at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """An output head: logits = scale / divisor * cap(hidden @ weight.T + bias).

    Attributes:
        weight: [V, d].
        bias: [V], or absent.
        scale: factor of the logits.
        divisor: what the logits are divided by.
        softcap: cap(z) = softcap * tanh(z / softcap); absent: cap(z) = z.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    divisor: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, out: Tensor) -> Tensor:
        """Logits of hidden rows, float32 at least, without a gradient.

        Args:
            hidden: [n, d].
            out: space for the logits, [n, V], that saves an allocation where its dtype fits.

        Returns:
            [n, V]; `out` or a new tensor.
        """
        if out.dtype == self.weight.dtype:
            z = torch.mm(hidden, self.weight.T, out=out)
        else:
            z = torch.mm(hidden, self.weight.T).to(out.dtype)
        return self.shape_(z if self.bias is None else z.add_(self.bias))

    def shape_(self, z: Tensor) -> Tensor:
        """Caps and scales linear outputs in place, rounding where the models do."""
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.divisor != 1.0:
            z.div_(self.divisor)
        return z if self.scale == 1.0 else z.mul_(self.scale)


def output_head(model: PreTrainedModel) -> Head:
    """Finds out what a causal LM does between its last hidden states and its logits.

    Two tokens run through the model with its own attention. The hidden states that enter the
    head must be those the base model returns, and the logits must be the head's linear output,
    possibly capped or scaled by a factor that the config names (Gemma2, Cohere, Granite).

    Args:
        model: the causal LM.

    Returns:
        The head; it shares the model's parameters.

    Raises:
        UnsupportedModelError: if the head does something else.
    """
    name = type(model).__name__
    module: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if type(module) is not nn.Linear:
        raise UnsupportedModelError(
            f"the output head of {name} is a {type(module).__name__}: only a plain nn.Linear "
            f"can be trained"
        )
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    tokens = torch.tensor([[0, 1]], device=module.weight.device)
    try:
        with torch.no_grad(), plain_attention(model), evaluating(model):
            logits = model(input_ids=tokens, use_cache=False).logits
            hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    finally:
        handle.remove()
    entering, z = seen[0]
    if entering.shape == hidden.shape and _close(entering, hidden):
        for head in _candidates(model, module):
            if _close(head.shape_(z.clone()), logits):
                return head
    raise UnsupportedModelError(
        f"{name} computes its logits in a way that is not a linear layer with a soft cap or a "
        f"scale from its config: train a model class that does"
    )


def token_logprobs(
    hidden: Tensor,
    head: Head,
    token_ids: Tensor,
    temperature: float,
    *,
    exact: ExactForward | None = None,
    max_chunk_logits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of one token and entropy a row, a chunk of rows at a time.

    The logits are divided by `temperature` first. With more than one chunk the backward pass
    computes the logits again, so that no more than a chunk of them exists at any time.

    Args:
        hidden: final hidden states, [U, d].
        head: the output head.
        token_ids: the token whose log-prob is wanted, i64[U].
        temperature: divisor of the logits, above 0.
        exact: computes as sampling does, in force on the model that the head is of.
        max_chunk_logits: rows of a chunk times vocabulary; `MAX_CHUNK_LOGITS` if absent.

    Returns:
        Log-probs [U] and entropies in nats [U], with gradients; float32 at least.
    """
    rows = max(1, (max_chunk_logits or MAX_CHUNK_LOGITS) // head.weight.shape[0])
    read_rows: _ReadRows
    if exact is None:
        read_rows = _TorchRows(head, temperature, hidden, rows)
    else:
        read_rows = _ExactRows(head, temperature, exact)
    scale = head.scale / (head.divisor * temperature)
    settings = _Settings(scale, head.softcap, rows, read_rows)
    logprob, entropy = _ChunkedLogProb.apply(hidden, head.weight, head.bias, token_ids, settings)
    return logprob, entropy


class _Read(NamedTuple):
    """What is read from the logits of some rows.

    Attributes:
        logprob: log-prob of each row's token, [n].
        entropy: entropy of each row in nats, [n].
        norm: logarithm of each row's sum of exponentials, [n].
        probs: makes the probabilities [n, V] in the place of the logits.
    """

    logprob: Tensor
    entropy: Tensor
    norm: Tensor
    probs: Callable[[], Tensor]


_ReadRows = Callable[[Tensor, Tensor], _Read]
"""Reads hidden rows [n, d] at their tokens, i64[n]."""


class _TorchRows:
    """Reads rows with torch."""

    def __init__(self, head: Head, temperature: float, hidden: Tensor, rows: int) -> None:
        self._head = Head(
            weight=head.weight,
            bias=head.bias,
            scale=head.scale / (head.divisor * temperature),
            softcap=head.softcap,
        )
        self._space = _logit_space(hidden, head.weight, rows)
        self._exp_space = torch.empty_like(self._space)

    def __call__(self, hidden: Tensor, token_ids: Tensor) -> _Read:
        z = self._head.logits(hidden, self._space[: len(hidden)])
        top = z.amax(-1, keepdim=True)
        z.sub_(top)
        exp = torch.exp(z, out=self._exp_space[: len(hidden)])
        total = exp.sum(-1)
        return _Read(
            logprob=z.gather(1, token_ids[:, None])[:, 0] - total.log(),
            entropy=total.log() - _row_dot(exp, z) / total,
            norm=top[:, 0] + total.log(),
            probs=lambda: exp.div_(total[:, None]),
        )


class _ExactRows:
    """Reads rows as sampling does."""

    def __init__(self, head: Head, temperature: float, exact: ExactForward) -> None:
        self._head = head
        self._temperature = temperature
        self._exact = exact

    def __call__(self, hidden: Tensor, token_ids: Tensor) -> _Read:
        logits = self._head.shape_(self._exact.head(hidden))
        logprob, entropy = self._exact.kernels.token_logprobs(logits, token_ids, self._temperature)
        own = logits.gather(1, token_ids[:, None])[:, 0].to(logprob.dtype)
        norm = own / self._temperature - logprob
        return _Read(
            logprob=logprob,
            entropy=entropy,
            norm=norm,
            probs=lambda: _softmax(logits.float() / self._temperature, norm),
        )


class _Settings(NamedTuple):
    """What `_ChunkedLogProb` needs beside tensors: the head's, temperature in the scale."""

    scale: float
    softcap: float | None
    rows: int
    read_rows: _ReadRows


class _ChunkedLogProb(torch.autograd.Function):
    """Selected log-softmax of a linear head; saves one number a row, not the logits.

    Probabilities are kept only where one chunk holds all rows and no cap bends the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor]:
        rows = settings.rows
        chunks = zip(torch.split(hidden, rows), torch.split(token_ids, rows), strict=True)
        keep = None
        parts = []
        for h, ids in chunks:
            read = settings.read_rows(h, ids)
            parts.append(read[:3])
            if len(hidden) <= rows and settings.softcap is None:
                keep = read.probs()
        logprob, entropy, norm = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, bias, token_ids, norm, keep, entropy)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return logprob, entropy

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, entropy_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, token_ids, norms, keep, entropy = ctx.saved_tensors
        scale, softcap, rows, _ = ctx.settings
        head = Head(weight=weight, bias=bias, scale=scale, softcap=softcap)
        wide = norms.dtype
        grad = norms.new_zeros(len(hidden)) if grad is None else grad
        space = _logit_space(hidden, weight, rows)
        d_hidden = torch.empty_like(hidden)
        needs_weight = ctx.needs_input_grad[1]
        d_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        for first in range(0, len(hidden), rows):
            part = slice(first, first + rows)
            if keep is None:
                probs, slope = _probs_again(head, hidden[part], norms[part], space)
            else:
                probs, slope = keep, None
            factor = -grad[part, None]
            if entropy_grad is not None:
                factor = factor - _entropy_factor(probs, entropy[part]) * entropy_grad[part, None]
            dz = probs.mul_(factor) if keep is None else keep * factor
            dz.scatter_add_(1, token_ids[part, None], grad[part, None])
            dz = dz.mul_(scale if slope is None else slope)
            if d_bias is not None:
                d_bias += dz.sum(0)
            dz = dz.to(weight.dtype)
            torch.mm(dz, weight, out=d_hidden[part])
            if d_weight is None:
                continue
            if weight.dtype == wide:
                d_weight.addmm_(dz.T, hidden[part])
            else:
                d_weight += dz.T @ hidden[part]
        bias_grad = None if d_bias is None else d_bias.to(bias.dtype)
        weight_grad = None if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, weight_grad, bias_grad, None, None


def _entropy_factor(probs: Tensor, entropy: Tensor) -> Tensor:
    """What dH / dz_j = -p_j (log p_j + H) is -p_j times of, [n, V]."""
    return torch.where(probs > 0, probs.log(), 0.0).add_(entropy[:, None])


def _logit_space(hidden: Tensor, weight: Tensor, rows: int) -> Tensor:
    """Uninitialised room for one chunk of logits; one room serves all chunks."""
    half = weight.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half else weight.dtype
    return hidden.new_empty((min(rows, len(hidden)), len(weight)), dtype=dtype)


def _probs_again(
    head: Head, hidden: Tensor, norm: Tensor, space: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Probabilities [n, V], and the derivative of capped and scaled logits if there is a cap."""
    z = head.logits(hidden, space[: len(hidden)])
    slope = None
    if head.softcap is not None:
        slope = head.scale * (1 - (z / (head.scale * head.softcap)).square())
    return _softmax(z, norm), slope


def _softmax(z: Tensor, norm: Tensor) -> Tensor:
    """Probabilities in the place of logits [n, V] whose norm [n] is known roughly.

    It is rounded, by 1e-6 where it is 20, and may be that of logits from another kernel. What a
    probability is off by stays in a gradient that is the difference of 1 and nearly 1.
    """
    z.sub_(norm[:, None]).exp_()
    return z.div_(z.sum(-1, keepdim=True))


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product of equal rows, [n]; a batched product, which needs no room for [n, V]."""
    return torch.bmm(a[:, None, :], b[:, :, None])[:, 0, 0]


def _candidates(model: PreTrainedModel, module: nn.Linear) -> Iterator[Head]:
    """The heads a config hints at, plain last: a cap far above the logits looks plain."""
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    factor = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    if softcap is not None:
        yield Head(weight=module.weight, bias=module.bias, softcap=float(softcap))
    if factor is not None:
        yield Head(weight=module.weight, bias=module.bias, scale=float(factor))
    if divisor is not None:
        yield Head(weight=module.weight, bias=module.bias, divisor=float(divisor))
    yield Head(weight=module.weight, bias=module.bias)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Equal within a few roundings of the model's own number format."""
    limit = 4 * torch.finfo(theirs.dtype).eps * float(theirs.abs().max())
    return bool((ours.to(theirs.dtype) - theirs).abs().max() <= limit)
