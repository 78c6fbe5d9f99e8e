"""Draw one token a row from logits with one uniform a row.

Inverse CDF in two levels: the vocabulary is cut into chunks, the uniform picks a chunk by the
chunks' masses and then a token within it. One random number a row instead of one a logit makes a
row's draw independent of the batch it stands in.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treepo.config import SamplingParams
from treepo.errors import NotFiniteError

_CHUNK = 256
# Candidates that top-p sorts first; a distribution flatter than that has its whole row sorted.
_TOP_P_CANDIDATES = 1024
# Logits handled at once on a CPU, so that what is computed from them stays in the cache.
_CPU_PART = 1 << 19


class DrawnArrays(NamedTuple):
    """Draws as `treepo.core.Scheduler.commit_step` takes them; see `Draws`."""

    token_ids: npt.NDArray[np.uint32]
    logprobs: npt.NDArray[np.float32]
    entropies: npt.NDArray[np.float32]


class Draws(NamedTuple):
    """Tokens drawn and what they were drawn from.

    Attributes:
        token_ids: i64 [num_rows].
        logprobs: f32 [num_rows], log-probability under the distribution that was sampled from
            (temperature and truncation applied, renormalised); greedy: at temperature 1.
        entropies: f32 [num_rows], entropy in nats of the full vocabulary at the sampling
            temperature, before truncation; greedy: at temperature 1.
    """

    token_ids: Tensor
    logprobs: Tensor
    entropies: Tensor

    def arrays(self) -> DrawnArrays:
        """Copy them to arrays."""
        return DrawnArrays(
            self.token_ids.to(torch.uint32).cpu().numpy(),
            self.logprobs.cpu().numpy(),
            self.entropies.cpu().numpy(),
        )


def sample(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> Draws:
    """Draw one token for each row.

    Args:
        logits: [num_rows, vocab_size], any float dtype; not changed.
        uniforms: f64 [num_rows] in [0, 1); not read if greedy.
        params: Temperature (0: the most likely token), top-k, top-p of what it leaves, and min-p.

    Returns:
        The draws. A token of probability 0 is never drawn.

    Raises:
        NotFiniteError: If a logit is NaN or infinite; names the first such row.
    """
    num_rows, vocab_size = logits.shape
    part = num_rows if logits.device.type != "cpu" else max(1, _CPU_PART // vocab_size)
    parts = [
        _sample_part(logits[first : first + part], uniforms[first : first + part], params, first)
        for first in range(0, max(1, num_rows), max(1, part))
    ]
    if len(parts) == 1:
        return parts[0]
    return Draws(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _sample_part(logits: Tensor, uniforms: Tensor, params: SamplingParams, first_row: int) -> Draws:
    """Draw as `sample` does, for rows that begin at `first_row` of the step."""
    is_greedy = params.temperature == 0
    logits = logits.float()
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    if not is_greedy and params.temperature != 1:
        shifted /= params.temperature
    mass, chunk_sums = _exponentiate(shifted)
    total = chunk_sums.sum(dim=-1)
    flat_mass = mass.flatten(1)[:, : shifted.shape[1]]
    entropies = total.log() - torch.linalg.vecdot(flat_mass, shifted).double() / total
    _check_finite(entropies, first_row)
    if is_greedy:
        token_ids = shifted.argmax(dim=-1)
    else:
        threshold = _threshold(shifted, total, params)
        if threshold is not None:
            flat_mass.masked_fill_(shifted < threshold, 0.0)
            chunk_sums = mass.sum(dim=-1).double()
            total = chunk_sums.sum(dim=-1)
        token_ids = _invert(mass, chunk_sums, uniforms)
    chosen = shifted.gather(1, token_ids.unsqueeze(1)).squeeze(1)
    logprobs = (chosen.double() - total.log()).float()
    return Draws(token_ids=token_ids, logprobs=logprobs, entropies=entropies.float())


def _exponentiate(shifted: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp in zero-padded chunks [S, C, chunk] and each chunk's sum, f64 [S, C]."""
    num_rows, vocab_size = shifted.shape
    chunk = min(_CHUNK, vocab_size)
    num_chunks = -(-vocab_size // chunk)
    mass = shifted.new_empty(num_rows, num_chunks * chunk)
    torch.exp(shifted, out=mass[:, :vocab_size])
    mass[:, vocab_size:] = 0.0
    mass = mass.view(num_rows, num_chunks, chunk)
    return mass, mass.sum(dim=-1).double()


def _check_finite(entropies: Tensor, first_row: int) -> None:
    # A NaN or an infinity anywhere in a row makes its entropy NaN.
    is_finite = torch.isfinite(entropies)
    if not bool(is_finite.all()):
        row = first_row + int(is_finite.logical_not().nonzero()[0])
        raise NotFiniteError(f"row {row} of the logits holds a NaN or an infinity")


def _threshold(shifted: Tensor, total: Tensor, params: SamplingParams) -> Tensor | None:
    """Return the smallest logit that may be drawn, [S, 1] or [1]; None if every one may.

    Tokens that tie with the last one kept are kept too.
    """
    threshold = _top_k_top_p(shifted, total, params)
    if params.min_p == 0:
        return threshold
    # The largest probability belongs to a shifted logit of 0.
    min_p = shifted.new_full((1,), math.log(params.min_p))
    return min_p if threshold is None else torch.maximum(threshold, min_p)


def _top_k_top_p(shifted: Tensor, total: Tensor, params: SamplingParams) -> Tensor | None:
    """Return the smallest logit that top-k and top-p leave, [S, 1]; None if they leave all."""
    vocab_size = shifted.shape[1]
    has_top_k = 0 < params.top_k < vocab_size
    if params.top_p >= 1:
        return shifted.topk(params.top_k).values[:, -1:] if has_top_k else None
    num_candidates = min(vocab_size, params.top_k if has_top_k else _TOP_P_CANDIDATES)
    values = shifted.topk(num_candidates).values
    mass = values.double().exp()
    if has_top_k:
        total = mass.sum(dim=-1)
    target = params.top_p * total.unsqueeze(1)
    if num_candidates < vocab_size and not has_top_k and (mass.sum(1, keepdim=True) < target).any():
        values = shifted.sort(descending=True).values
        mass = values.double().exp()
    # A token is kept if the mass before it has not reached the target; the first always is.
    num_kept = ((mass.cumsum(dim=-1) - mass) < target).sum(dim=-1, keepdim=True)
    return values.gather(1, num_kept - 1)


def _invert(mass: Tensor, chunk_sums: Tensor, uniforms: Tensor) -> Tensor:
    """Return the token whose interval of the cumulative mass holds each uniform, i64 [S]."""
    num_rows, num_chunks, chunk = mass.shape
    if num_chunks == 1:
        return _pick(mass.view(num_rows, chunk), uniforms)[0]
    chunk_index, within = _pick(chunk_sums, uniforms)
    rows = torch.arange(num_rows, device=mass.device)
    return chunk_index * chunk + _pick(mass[rows, chunk_index], within)[0]


def _pick(mass: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Pick an entry of each row in proportion to its mass.

    Args:
        mass: [S, n], not negative, a positive sum in each row.
        uniforms: f64 [S].

    Returns:
        The entries, i64 [S], each of positive mass, and where within its entry each uniform fell,
        f64 [S] in [0, 1].
    """
    cumulative = mass.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # Below the total, so that the first cumulative mass above the target exists; that entry's own
    # mass is then positive.
    below_total = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniforms.unsqueeze(1) * total, below_total)
    entry = torch.searchsorted(cumulative, target, right=True)
    width = mass.gather(1, entry).double()
    before = cumulative.gather(1, entry) - width
    within = ((target - before) / width).clamp(0.0, 1.0)
    return entry.squeeze(1), within.squeeze(1)
