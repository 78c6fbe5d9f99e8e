"""The check that a model computes the same for tokens in any order, by their positions alone.

Sampling lays tokens of many paths into one row and says where each belongs. A model that counts
positions itself, or that mixes neighbours elsewhere than in attention, would compute something
else without an error.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from treepo.engine.hook import evaluating, plain_attention
from treepo.errors import UnsupportedModelError

_ORDER = (5, 2, 7, 0, 3, 6, 1, 4)
# Tolerated difference of logits as a part of the largest logit: rounding, and no more.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2.0**-10, torch.float16: 2.0**-5}
_COARSE = 0.25


def check_order(model: PreTrainedModel) -> None:
    """Compare a few tokens through the hook, out of order, with the model's own forward.

    Args:
        model: A model on which the hook is installed.

    Raises:
        UnsupportedModelError: The logits differ by more than rounding.
    """
    text = model.config.get_text_config(decoder=True)
    longest = getattr(text, "max_position_embeddings", None) or len(_ORDER)
    order = torch.tensor([x for x in _ORDER if x < longest], device=model.device)
    tokens = (torch.arange(len(order), device=model.device) * 7 + 3) % text.vocab_size
    with torch.no_grad(), evaluating(model):
        with plain_attention(model):
            expected: Tensor = model(input_ids=tokens[None], use_cache=False).logits[0].float()
        found: Tensor = model(
            input_ids=tokens[order][None],
            position_ids=order[None],
            use_cache=False,
            treepo=_ByPosition(order),
        ).logits[0]
    difference = float((found.float() - expected[order]).abs().max())
    limit = _TOLERANCE.get(model.dtype, _COARSE) * float(expected.abs().max())
    if not difference <= limit:
        raise UnsupportedModelError(
            f"{type(model).__name__} gives logits that differ by {difference:.3g} from its own "
            "forward when its tokens come in another order with their positions: models that "
            "count positions themselves or mix tokens outside of attention are not supported"
        )


class _ByPosition:
    """Causal attention by position over the tokens of one row; an `AttentionContext`."""

    def __init__(self, positions: Tensor) -> None:
        self._distance = positions[:, None] - positions[None, :]

    def attend(
        self,
        module: nn.Module,  # noqa: ARG002
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attend; arguments and result as in `AttentionContext.attend`."""
        fold = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(fold, 1), value.repeat_interleave(fold, 1)
        factor = query.shape[3] ** -0.5 if scaling is None else scaling
        scores = (query @ key.transpose(2, 3)).float() * factor
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = self._distance < 0
        if sliding_window is not None:
            hidden = hidden | (self._distance >= sliding_window)
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            extra = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, extra], dim=-1)
        weights = torch.softmax(scores, dim=-1)[..., : key.shape[2]]
        return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous()
