"""A model's forward without its modules: embedding, layers, norm and head by one call.

Between kernels that take milliseconds the code of a model's modules is out of the processor's
caches, and runs several times as long as in a loop of its own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from treepo.core import DecoderLayer, DecoderModel
from treepo.engine.fused.chain import LayerChain
from treepo.engine.fused.ends import Ends
from treepo.engine.fused.linear import PackedArgs, Panels
from treepo.engine.fused.whole import LayersInStep, WholeLayers
from treepo.engine.inputs import StepInputs
from treepo.engine.kernels import ELEMENTS


class DirectForward:
    """Logits of a step by one call of the kernels, as long as the model is what it was when made.

    Looked at in each step are hooks, code, configurations and plain attributes of the modules
    around the layers, and which modules these are. What their code takes from elsewhere is not.

    Attributes:
        ends: The modules around the layers.
    """

    def __init__(self, chain: LayerChain, whole: WholeLayers, ends: Ends) -> None:
        """Remember the model as it is now: evaluating, its replacements in force."""
        self.ends = ends
        self._chain = chain
        self._whole = whole
        self._watched = ends.modules
        self._state = self._tried = _copied(self._settings())
        self._code = self._code_now()
        self._known: _Known | None = None

    def __call__(self, inputs: StepInputs, context: Any) -> Tensor | None:
        """Return the logits of a step's rows [num_logit_rows, vocab_size]; None if the model must.

        Args:
            inputs: Of the step.
            context: Of attention.
        """
        if torch.is_grad_enabled() or self.is_cut():
            return None
        ends, whole, num_tokens = self.ends, self._whole, inputs.token_ids.shape[1]
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
        rows, (_, vocab_size) = inputs.logit_rows, panels.described[1]
        logits = torch.empty((len(rows), vocab_size), dtype=weight.dtype)
        whole.kernels.native.logits(
            known.model,
            in_step.step,
            inputs.token_ids[0].numpy(),
            None if len(rows) == num_tokens else rows.numpy(),  # Each once, in order: all.
            angles,
            logits.data_ptr(),
        )
        return logits

    def is_cut(self) -> bool:
        """Whether something may happen beside the kernels, or the model is not what it was."""
        return (
            self._chain.is_cut()
            or any(x._forward_hooks or x._forward_pre_hooks for x in self._watched)
            or any(parent._modules.get(name) is not x for parent, name, x in self.ends.places)
            or self._code_now() != self._code
            or not _are_equal(self._settings(), self._state)
        )

    def has_new_settings(self) -> bool:
        """Whether configurations or plain attributes are others than when this was last asked.

        Some change without a meaning for the logits: a model that is saved names its own class.
        """
        now = self._settings()
        is_new = not _are_equal(now, self._tried)
        self._tried = _copied(now)
        return is_new

    def _code_now(self) -> list[Any]:
        return [(type(x).__call__, type(x).forward, vars(x).get("forward")) for x in self._watched]

    def _settings(self) -> list[Any]:
        """Configurations and plain attributes."""
        configs = {id(x.config): vars(x.config) for x in self.ends.path if hasattr(x, "config")}
        plain = [
            {name: x for name, x in vars(module).items() if x is None or type(x) in _PLAIN}
            for module in self._watched
        ]
        return [list(configs.values()), plain]

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
                norm=self.ends.norm.described(norm),
                head=panels.described,
            )
            known = self._known = _Known(in_step.layers, key, like(weight), model)
        return known


_PLAIN = (bool, int, float, str)


def _copied(settings: Any) -> Any:
    """Return a copy of containers that has the same things in it."""
    if type(settings) is dict:
        return {name: _copied(x) for name, x in settings.items()}
    if type(settings) in (list, tuple):
        return type(settings)(map(_copied, settings))
    return settings


def _are_equal(settings: list[Any], others: list[Any]) -> bool:
    try:
        return bool(settings == others)
    except Exception:  # Of something in a configuration that is not compared so.
        return False


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


def like(weight: Tensor) -> Tensor:
    """Return something in the format of an embedding, [1, 1, width]."""
    return weight.new_zeros((1, 1, weight.shape[1]))


def _fit(weight: Tensor, norm: Tensor, panels: Panels) -> bool:
    """Whether the ends are plain tensors of one format on the CPU, their rows contiguous."""
    return (
        all(type(x) is Tensor and x.device.type == "cpu" for x in (weight, norm))
        and weight.dtype in ELEMENTS
        and weight.dtype == panels.dtype == norm.dtype
        and weight.is_contiguous()
        and norm.is_contiguous()
    )
