"""A model's forward without its modules: embedding, layers, norm and head by one call.

Between kernels that take milliseconds the code of a model's modules is out of the processor's
caches, and runs several times as long as in a loop of its own.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from treepo.core import DecoderLayer, DecoderModel
from treepo.engine.fused.chain import LayerChain
from treepo.engine.fused.linear import PackedArgs, PackedLinear, Panels
from treepo.engine.fused.whole import LayersInStep, Norm, WholeLayers
from treepo.engine.inputs import StepInputs
from treepo.engine.kernels import ELEMENTS


@dataclass(frozen=True, slots=True)
class Ends:
    """What a model computes around its layers.

    Attributes:
        embedding: Looks tokens up, and does nothing else to them.
        rotary: Cosines and sines of positions; None if no layer rotates.
        norm: Behind the last layer.
        head: Its linear layer.
    """

    embedding: nn.Embedding
    rotary: nn.Module | None
    norm: Norm
    head: PackedLinear

    @property
    def modules(self) -> list[nn.Module]:
        """Those whose place the kernels take."""
        return [self.embedding, self.norm.module, *self.head.modules]

    @property
    def all_modules(self) -> list[nn.Module]:
        """All."""
        return self.modules if self.rotary is None else [*self.modules, self.rotary]

    def angles(self, like: Tensor, positions: Tensor) -> Any:
        """Return cosines and sines, [1, num_tokens, rotary_dim] each, or None.

        Args:
            like: Of the model's number format, [1, 1, width].
            positions: i64 [1, num_tokens].
        """
        return None if self.rotary is None else self.rotary(like, positions)


class DirectForward:
    """Logits of a step by one call of the kernels, as long as the model is what it was at load.

    Attributes:
        num_runs: How often it computed.
    """

    def __init__(
        self, model: PreTrainedModel, chain: LayerChain, whole: WholeLayers, ends: Ends
    ) -> None:
        """Remember the model as it is now: evaluating, its replacements in force."""
        self.num_runs = 0
        self._model = model
        self._chain = chain
        self._whole = whole
        self._ends = ends
        [owner] = chain.owners
        self._path = [x for x in model.modules() if any(y is owner for y in x.modules())]
        self._places = [
            (parent, name, child)
            for parent in self._path
            for name, child in parent._modules.items()
            if any(child is module for module in ends.all_modules)
        ]
        self._config = copy.deepcopy(vars(model.config))
        self._state = self._now()
        self._known: _Known | None = None

    def by_modules(self, tokens: Tensor, positions: Tensor, wanted: Tensor, context: Any) -> Tensor:
        """Return the logits [num_wanted, vocab_size] as the modules alone compute them.

        Args:
            tokens: i64 [1, num_tokens].
            positions: i64 [1, num_tokens].
            wanted: i64 [num_wanted], tokens by their place.
            context: Of attention.
        """
        ends = self._ends
        rotary = ends.angles(_like(ends.embedding.weight), positions)
        hidden = self._chain.run(ends.embedding(tokens), position_embeddings=rotary, treepo=context)
        [head] = ends.head.modules
        logits: Tensor = head(ends.norm.module(hidden[:, wanted]))[0]
        return logits

    def __call__(self, inputs: StepInputs, context: Any) -> Tensor | None:
        """Return the logits of a step's rows [num_logit_rows, vocab_size]; None if the model must.

        Args:
            inputs: Of the step.
            context: Of attention.
        """
        if torch.is_grad_enabled() or self.is_cut():
            return None
        ends, whole, num_tokens = self._ends, self._whole, inputs.token_ids.shape[1]
        # Held: another thread may replace or pack them anew meanwhile.
        weight, norm = ends.embedding.weight.detach(), ends.norm.weight.detach()
        panels = ends.head.panels
        shape = torch.Size((1, num_tokens, weight.shape[1]))
        in_step: LayersInStep | None = context.layers_in_step(shape, weight.dtype)
        if in_step is None or panels is None:
            return None
        known = self._look_up(in_step, weight, norm, panels)
        if known is None:
            return None
        rotary = ends.angles(known.like, inputs.positions)
        can_rotate, angles = whole.angles(slice(0, None), in_step, rotary)
        if not can_rotate:
            return None
        rows = inputs.logit_rows
        logits = torch.empty((len(rows), ends.head.modules[0].out_features), dtype=weight.dtype)
        whole.kernels.native.logits(
            known.model,
            in_step.step,
            inputs.token_ids[0].numpy(),
            None if len(rows) == num_tokens else rows.numpy(),
            angles,
            logits.data_ptr(),
        )
        self.num_runs += 1
        return logits

    def is_cut(self) -> bool:
        """Whether something may happen beside the kernels, or the model is not what it was."""
        return (
            self._chain.is_cut()
            or any(x._forward_hooks or x._forward_pre_hooks for x in self._hooked)
            or any(parent._modules.get(name) is not x for parent, name, x in self._places)
            or self._now() != self._state
            or vars(self._model.config) != self._config
        )

    @property
    def _hooked(self) -> list[nn.Module]:
        return [*self._path, *self._ends.modules]

    def _now(self) -> list[Any]:
        """The model's code and plain attributes."""
        code = [(type(x).__call__, type(x).forward, vars(x).get("forward")) for x in self._hooked]
        plain = [
            {name: x for name, x in vars(module).items() if x is None or type(x) in _PLAIN}
            for module in self._path
        ]
        return [code, plain]

    def _look_up(
        self, in_step: LayersInStep, weight: Tensor, norm: Tensor, panels: Panels
    ) -> "_Known | None":
        """Return the model as the kernels know it; None if they cannot compute its ends."""
        at = [(x.data_ptr(), x.shape, x.is_contiguous(), x.dtype) for x in (weight, norm)]
        key = panels.described, at
        known = self._known
        if known is None or known.layers is not in_step.layers or known.key != key:
            if not _fit(weight, norm, panels):
                return None
            model = DecoderModel(
                ELEMENTS[weight.dtype],
                in_step.layers,
                embedding=(weight.data_ptr(), *weight.shape),
                norm=self._ends.norm.described(norm),
                head=panels.described,
            )
            known = self._known = _Known(in_step.layers, key, _like(weight), model)
        return known


_PLAIN = (bool, int, float, str)


@dataclass(frozen=True, slots=True)
class _Known:
    """A model as the kernels know it, and what it was made from.

    Attributes:
        layers: Its layers.
        key: Where and how its ends are.
        like: Something in the format of the model, for its rotary embedding.
        model: What the kernels know.
    """

    layers: list[DecoderLayer]
    key: tuple[PackedArgs, list[Any]]
    like: Tensor
    model: DecoderModel


def _like(weight: Tensor) -> Tensor:
    return weight.new_zeros((1, 1, weight.shape[1]))


def _fit(weight: Tensor, norm: Tensor, panels: Panels) -> bool:
    """Whether the ends are in one format, their rows contiguous."""
    return (
        weight.dtype in ELEMENTS
        and weight.dtype == panels.dtype == norm.dtype
        and weight.is_contiguous()
        and norm.is_contiguous()
    )
