"""Paged attention in plain torch operations: right on every device, and the oracle for others.

Rows of one group are gathered into a padded batch and attended to together. Query heads that share
a key head are folded into the query dimension, so grouped-query attention copies no keys.
"""

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from treepo.engine.attention.base import Feature, LayerCall
from treepo.engine.attention.groups import RowGroup, group_rows
from treepo.engine.inputs import Arrangement, StepInputs, StepRows
from treepo.engine.kv import KVPool, Layout


class TorchBackend:
    """Gather plus scaled dot-product attention; an `AttentionBackend`."""

    name = "torch"
    features = frozenset(Feature)

    layout = Layout.TOKENS
    reads_groups = False

    def __init__(self, *, max_gathered_slots: int, device: torch.device) -> None:
        """Start without scratch memory; it grows to the largest group.

        Args:
            max_gathered_slots: Slots of one layer that are gathered at once.
            device: Where pool and inputs live.
        """
        self._max_gathered_slots = max_gathered_slots
        self._device = device
        self._scratch: dict[_Role, Tensor] = {}

    def arrange(self, rows: StepRows) -> Arrangement:
        """Group the rows; a model does not mind the order of tokens."""
        order, groups = group_rows(
            rows, max_gathered_slots=self._max_gathered_slots, device=self._device
        )
        return Arrangement(token_order=order, state=groups)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pool: KVPool,
        inputs: StepInputs,
        call: LayerCall,
    ) -> Tensor:
        """Write, then attend group by group; shapes as in `AttentionBackend.attend`."""
        pool.write(layer, inputs.slot_mapping, key.transpose(0, 1), value.transpose(0, 1))
        keys, values = pool.layer(layer)
        outputs = [
            self._attend_group(query, keys, values, group, call)
            for group in inputs.arrangement.state
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_group(
        self, query: Tensor, keys: Tensor, values: Tensor, group: RowGroup, call: LayerCall
    ) -> Tensor:
        """Attend from the tokens of one group: [num_tokens, H, D] to [R * Q, H, Dv]."""
        num_heads, num_kv_heads = query.shape[1], keys.shape[2]
        num_rows, query_len, fold = group.num_rows, group.query_len, num_heads // num_kv_heads
        first, end = group.first_token, group.first_token + num_rows * query_len
        folded = (
            query[first:end]
            .reshape(num_rows, query_len, num_kv_heads, fold, -1)
            .permute(0, 2, 3, 1, 4)
            .reshape(num_rows, num_kv_heads, fold * query_len, -1)
        )
        row_keys = self._gather(_Role.KEYS, keys, group).to(query.dtype)
        row_values = self._gather(_Role.VALUES, values, group).to(query.dtype)
        mask = group.visible(call.sliding_window, fold)
        if call.softcap is None and call.sinks is None:
            output = F.scaled_dot_product_attention(
                folded, row_keys, row_values, attn_mask=mask, scale=call.scaling
            )
        else:
            output = _explicit_attention(folded, row_keys, row_values, mask, call)
        return (
            output.view(num_rows, num_kv_heads, fold, query_len, -1)
            .permute(0, 3, 1, 2, 4)
            .reshape(num_rows * query_len, num_heads, -1)
        )

    def _gather(self, role: "_Role", pool: Tensor, group: RowGroup) -> Tensor:
        """Collect the rows' blocks: [num_blocks, B, Hkv, D] to a view [R, Hkv, kv_len, D]."""
        # index_select copies whole rows of a matrix much faster than slices of a 4-d tensor, and
        # fresh memory for every call would cost more in page faults than the copy itself.
        blocks = pool.view(pool.shape[0], -1)
        size = len(group.blocks) * blocks.shape[1]
        scratch = self._scratch.get(role)
        if scratch is None or scratch.numel() < size or scratch.dtype != pool.dtype:
            scratch = self._scratch[role] = pool.new_empty(size)
        rows = scratch[:size].view(len(group.blocks), -1)
        torch.index_select(blocks, 0, group.blocks, out=rows)
        padded = rows.view(group.num_rows, -1, pool.shape[2], pool.shape[3])
        return padded[:, : group.kv_len].transpose(1, 2)


class _Role(Enum):
    KEYS = 0
    VALUES = 1


def _explicit_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, call: LayerCall
) -> Tensor:
    """Softmax attention with soft cap and sinks: [R, Hkv, fold * Q, D] to [..., Dv]."""
    scores = (query @ keys.transpose(2, 3)).float() * call.scaling
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if call.sinks is None:
        return torch.softmax(scores, dim=-1).to(values.dtype) @ values
    sinks = call.sinks.float().view(1, keys.shape[1], -1, 1)
    query_len = query.shape[2] // sinks.shape[2]
    sinks = sinks.repeat_interleave(query_len, dim=2).expand(query.shape[0], -1, -1, -1)
    weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)
    return weights[..., :-1].to(values.dtype) @ values
