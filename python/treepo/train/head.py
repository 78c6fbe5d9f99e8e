"""The output head: which logits a model computes, and log-probs a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from treepo.engine.hook import evaluating, plain_attention
from treepo.errors import UnsupportedModelError

MAX_CHUNK_LOGITS = 1 << 23
"""Logits of one chunk, rows times vocabulary; twice as many numbers exist at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """An output head: logits = scale * cap(hidden @ weight.T + bias).

    Attributes:
        weight: [V, d].
        bias: [V], or absent.
        scale: factor of the logits.
        softcap: cap(z) = softcap * tanh(z / softcap); absent: cap(z) = z.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
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
        """Caps and scales linear outputs in place."""
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
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
    max_chunk_logits: int = MAX_CHUNK_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Log-prob of one token and entropy a row, a chunk of rows at a time.

    The logits are divided by `temperature` first. With more than one chunk the backward pass
    computes the logits again, so that no more than a chunk of them exists at any time.

    Args:
        hidden: final hidden states, [U, d].
        head: the output head.
        token_ids: the token whose log-prob is wanted, i64[U].
        temperature: divisor of the logits, above 0.
        max_chunk_logits: rows of a chunk times vocabulary.

    Returns:
        Log-probs [U], with a gradient, and entropies in nats [U], without; float32 at least.
    """
    rows = max(1, max_chunk_logits // head.weight.shape[0])
    logprob, entropy = _ChunkedLogProb.apply(
        hidden, head.weight, head.bias, token_ids, head.scale / temperature, head.softcap, rows
    )
    return logprob, entropy


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
        scale: float,
        softcap: float | None,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight=weight, bias=bias, scale=scale, softcap=softcap)
        space = _logit_space(hidden, weight, rows)
        exp_space = torch.empty_like(space)
        logprobs, entropies, norms = [], [], []
        keep = None
        for h, ids in zip(torch.split(hidden, rows), torch.split(token_ids, rows), strict=True):
            z = head.logits(h, space[: len(h)])
            top = z.amax(-1, keepdim=True)
            z.sub_(top)
            exp = torch.exp(z, out=exp_space[: len(h)])
            total = exp.sum(-1)
            logprobs.append(z.gather(1, ids[:, None])[:, 0] - total.log())
            entropies.append(total.log() - _row_dot(exp, z) / total)
            norms.append(top[:, 0] + total.log())
            if len(hidden) <= rows and softcap is None:
                keep = exp.div_(total[:, None])
        ctx.save_for_backward(hidden, weight, bias, token_ids, torch.cat(norms), keep)
        ctx.settings = (scale, softcap, rows)
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, token_ids, norms, keep = ctx.saved_tensors
        scale, softcap, rows = ctx.settings
        head = Head(weight=weight, bias=bias, scale=scale, softcap=softcap)
        wide = grad.dtype
        space = _logit_space(hidden, weight, rows)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=wide)
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
        for first in range(0, len(hidden), rows):
            part = slice(first, first + rows)
            if keep is None:
                probs, slope = _probs_again(head, hidden[part], norms[part], space)
                dz = probs.mul_(-grad[part, None])
            else:
                dz, slope = keep * -grad[:, None], None
            dz.scatter_add_(1, token_ids[part, None], grad[part, None])
            dz = dz.mul_(scale if slope is None else slope)
            if d_bias is not None:
                d_bias += dz.sum(0)
            dz = dz.to(weight.dtype)
            torch.mm(dz, weight, out=d_hidden[part])
            if weight.dtype == wide:
                d_weight.addmm_(dz.T, hidden[part])
            else:
                d_weight += dz.T @ hidden[part]
        bias_grad = None if d_bias is None else d_bias.to(bias.dtype)
        return d_hidden, d_weight.to(weight.dtype), bias_grad, None, None, None, None


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
    return z.sub_(norm[:, None]).exp_(), slope


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
        yield Head(weight=module.weight, bias=module.bias, scale=1 / float(divisor))
    yield Head(weight=module.weight, bias=module.bias)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Equal within a few roundings of the model's own number format."""
    limit = 4 * torch.finfo(theirs.dtype).eps * float(theirs.abs().max())
    return bool((ours.to(theirs.dtype) - theirs).abs().max() <= limit)
