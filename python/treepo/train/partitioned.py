"""Trees larger than one pass: forward and backward part by part, with the gradient of the whole.

A part runs with the keys and values of its ancestors as inputs. Its backward pass leaves gradients
on those inputs; when all parts below an ancestor have run, they enter the ancestor's own backward
pass beside its share of the loss. The sum over parts is the gradient of the whole tree, because a
token influences later ones through its keys and values only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from treepo.config import Parts
from treepo.train.attention import PackedContext
from treepo.train.forward import Forward
from treepo.train.objective import Fixed, ForestLoss, Objective
from treepo.train.pack import PackedForest
from treepo.train.partition import Part, cut
from treepo.train.token_advantages import TokenAdvantages

I64 = npt.NDArray[np.int64]
KeyValue = tuple[Tensor, Tensor]


class PartitionedPass:
    """Forward and backward of packed trees in parts."""

    def __init__(
        self, forward: Forward, objective: Objective, max_tokens: int, parts: Parts
    ) -> None:
        """Takes the parts of an update.

        Args:
            forward: the model.
            objective: the loss; with `Parts.KEEP` one of tokens.
            max_tokens: unique tokens of a part at most.
            parts: what is kept while other parts run.
        """
        self._forward = forward
        self._objective = objective
        self._max_tokens = max_tokens
        self._parts = parts

    def backward(
        self,
        packed: PackedForest,
        advantages: TokenAdvantages,
        total_weight: float,
        fixed: Fixed,
    ) -> ForestLoss:
        """Adds the gradient of the loss to the model's parameters.

        Args:
            packed: the trees.
            advantages: those of trajectory tokens.
            total_weight: sum of weights over the whole optimizer step.
            fixed: log-probs that do not change.

        Returns:
            The loss and what describes it, without a gradient.
        """
        run = _Run(self._forward, packed, cut(packed, self._max_tokens))
        if self._parts is Parts.RECOMPUTE:
            loss = self._twice(run, advantages, total_weight, fixed)
        else:
            loss = self._once(run, advantages, total_weight, fixed)
        return loss.forwarded(run.num_forward_tokens)

    def logprobs(self, packed: PackedForest) -> tuple[Tensor, Tensor]:
        """Returns log-probs and entropies of the sampled tokens, [U] each, without a gradient."""
        run = _Run(self._forward, packed, cut(packed, self._max_tokens))
        return run.read_all()

    def _twice(
        self, run: _Run, advantages: TokenAdvantages, total_weight: float, fixed: Fixed
    ) -> ForestLoss:
        """All log-probs first: the loss gives their gradients, and each part runs once more."""
        logprob, entropy = (x.requires_grad_() for x in run.read_all())
        loss = self._objective(run.packed, advantages, total_weight, logprob, entropy, fixed)
        loss.require_finite()
        slopes = torch.autograd.grad(loss.loss, [logprob, entropy], allow_unused=True)
        for index in reversed(range(len(run.parts))):
            state = run.forward(index)
            pairs = [
                (values, slope[state.rows])
                for values, slope in zip(state.read, slopes, strict=True)
                if slope is not None and len(values)
            ]
            run.backward(index, state, pairs)
        return loss

    def _once(
        self, run: _Run, advantages: TokenAdvantages, total_weight: float, fixed: Fixed
    ) -> ForestLoss:
        """Each part's share of the loss when it has run; open parts keep their activations."""
        share = self._objective.split(run.packed, advantages, total_weight, fixed, run.device)
        logprobs: list[Tensor] = []
        entropies: list[Tensor] = []
        opened: list[tuple[int, _State]] = []

        def close() -> None:
            index, state = opened.pop()
            loss = share.loss(*state.read, state.rows)
            run.backward(index, state, [(loss, torch.ones_like(loss))] if len(state.rows) else [])

        for index, part in enumerate(run.parts):
            while opened and opened[-1][0] != part.parent:
                close()
            state = run.forward(index)
            run.hand_down(index, state.own)
            opened.append((index, state))
            logprobs.append(state.read[0].detach())
            entropies.append(state.read[1].detach())
        while opened:
            close()
        logprob, entropy = run.in_order(logprobs), run.in_order(entropies)
        with torch.no_grad():
            return self._objective(run.packed, advantages, total_weight, logprob, entropy, fixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """One part's forward pass.

    Attributes:
        rows: the sampled tokens that the part predicts, i64[R].
        read: their log-probs and entropies, [R] each.
        own: keys and values of the part's tokens, a pair a layer, with a graph.
    """

    rows: Tensor
    read: tuple[Tensor, Tensor]
    own: list[KeyValue]


class _Run:
    """A packed forest in parts, and the keys and values that parts hand down."""

    def __init__(self, forward: Forward, packed: PackedForest, parts: Sequence[Part]) -> None:
        self.packed = packed
        self.parts = parts
        self.device = forward.model.device
        self.num_forward_tokens = 0
        self._forward = forward
        self._handed: dict[int, list[KeyValue]] = {}
        self._has_children = np.zeros(len(parts), dtype=bool)
        self._has_children[[part.parent for part in parts if part.parent >= 0]] = True
        self._owner = np.empty(packed.num_tokens, dtype=np.int64)
        self._local = np.empty(packed.num_tokens, dtype=np.int64)
        for index, part in enumerate(parts):
            self._owner[part.tokens] = index
            self._local[part.tokens] = np.arange(len(part.tokens))
        # The token that predicts decides whose row it is: no hidden state leaves its part.
        order = np.argsort(self._owner[packed.predictor], kind="stable")
        bounds = np.searchsorted(self._owner[packed.predictor][order], np.arange(len(parts) + 1))
        self._rows = [order[a:b] for a, b in pairwise(bounds)]

    def read_all(self) -> tuple[Tensor, Tensor]:
        """Run all parts without a gradient; keeps what parts below others need."""
        logprobs: list[Tensor] = []
        entropies: list[Tensor] = []
        with torch.no_grad():
            for index in range(len(self.parts)):
                state = self.forward(index)
                self.hand_down(index, state.own)
                logprobs.append(state.read[0])
                entropies.append(state.read[1])
        return self.in_order(logprobs), self.in_order(entropies)

    def in_order(self, of_parts: Sequence[Tensor]) -> Tensor:
        """Join what was read part by part to one number a sampled token, [U]."""
        back = torch.from_numpy(np.argsort(np.concatenate(self._rows))).to(self.device)
        return torch.cat([values for values in of_parts if len(values)])[back]

    def forward(self, index: int) -> _State:
        """Run one part behind the keys and values of its ancestors."""
        part, packed, rows = self.parts[index], self.packed, self._rows[index]
        context = _PartContext(
            PackedContext.behind(part.spans, self.device, len(part.chain)), self._given(part)
        )
        hidden = self._forward.hidden(
            packed.token_ids[part.tokens], packed.positions[part.tokens], context
        )
        self.num_forward_tokens += len(part.tokens)
        predictors = self._local[packed.predictor[rows]]
        targets = packed.token_ids[packed.target[rows]]
        if len(rows):
            read = self._forward.read(hidden, predictors, targets)
        else:
            read = (hidden.new_zeros(0), hidden.new_zeros(0))
        return _State(rows=torch.from_numpy(rows).to(self.device), read=read, own=context.own)

    def hand_down(self, index: int, own: Sequence[KeyValue]) -> None:
        """Keep a part's keys and values for the parts below it, as inputs that take gradients."""
        if self._has_children[index]:
            self._handed[index] = [
                (_summable(key).requires_grad_(), _summable(value).requires_grad_())
                for key, value in own
            ]

    def backward(self, index: int, state: _State, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Run one part's backward pass; all parts below it have run theirs."""
        found = list(pairs)
        for own, handed in zip(state.own, self._handed.pop(index, []), strict=False):
            found += [
                (mine, theirs.grad.to(mine.dtype))
                for mine, theirs in zip(own, handed, strict=True)
                if theirs.grad is not None and mine.requires_grad  # Layers below may be frozen.
            ]
        if found:
            tensors, grads = zip(*found, strict=True)
            torch.autograd.backward(tensors, grads)

    def _given(self, part: Part) -> list[tuple[list[KeyValue], Tensor]]:
        """Return keys and values of each part of the chain, and its tokens on the chain."""
        if not len(part.chain):
            return []
        owners = self._owner[part.chain]
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        return [
            (
                self._handed[int(owners[start])],
                torch.from_numpy(self._local[tokens]).to(self.device),
            )
            for start, tokens in zip(starts, np.split(part.chain, starts[1:]), strict=True)
        ]


def _summable(tensor: Tensor) -> Tensor:
    """A copy without history in which gradients of many parts add up without losing small ones."""
    is_half = torch.finfo(tensor.dtype).bits < 32
    return tensor.detach().float() if is_half else tensor.detach()


@dataclass(slots=True)
class _PartContext:
    """Attention of a part's queries to the chain's keys and its own."""

    attention: PackedContext
    given: list[tuple[list[KeyValue], Tensor]]
    own: list[KeyValue] = field(default_factory=list)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attends; arguments and result as in `PackedContext.attend`."""
        layer = len(self.own)
        self.own.append((key, value))
        if self.given:
            keys, values = zip(
                *[
                    (
                        kv[layer][0].index_select(2, tokens).to(key.dtype),
                        kv[layer][1].index_select(2, tokens).to(value.dtype),
                    )
                    for kv, tokens in self.given
                ],
                strict=True,
            )
            key = torch.cat([*keys, key], 2)
            value = torch.cat([*values, value], 2)
        return self.attention.attend(
            module,
            query,
            key,
            value,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=sinks,
        )
