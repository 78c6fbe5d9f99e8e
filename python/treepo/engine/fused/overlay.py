"""Faster forwards of a model's modules, in force within a `with` block.

The model stays what it is: its modules, parameters and hooks are untouched, so that autograd,
optimizers and peft see what they always see. Within the block some modules carry a `forward` of
their own that computes the same function: with packed weights or with a kernel. Each kind of
replacement is tried on the model when the overlay is made and left out where the logits differ.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from threading import RLock
from typing import Any

from torch import nn

from treepo.engine.fused.linear import PackedLinear, SharedInput


class Fusion(StrEnum):
    """A kind of replacement."""

    PACKED_LINEAR = "packed_linear"
    """Linear layers with packed weights."""
    SHARED_INPUT = "shared_input"
    """Packed layers that read the same input are computed as one."""
    NORM = "norm"
    """RMS norms in one pass."""
    GATE = "gate"
    """The activation and product of a gated feed-forward layer in one pass."""
    ACTIVATION = "activation"
    """The activations of other feed-forward layers."""
    ROTARY = "rotary"
    """The rotary embedding of queries and keys in one pass."""
    DECODER_LAYER = "decoder_layer"
    """Decoder layers in one function, whose products add to the layer's input on their way."""


@dataclass(slots=True)
class Replacement:
    """One function in the place of another: `owner.name` is `function` within the block."""

    owner: Any
    name: str
    function: Callable[..., Any]


@dataclass(slots=True)
class Overlay:
    """Replacements of one model, and the packed weights that some of them read.

    Attributes:
        fusions: The kinds in force.
        linears: Packed weights.
        shared: Those of them that compute several layers at once.
        replacements: What is put in place.
        is_all_kernels: Whether decoder layers and head compute by this package's kernels alone.
    """

    fusions: tuple[Fusion, ...] = ()
    linears: list[PackedLinear] = field(default_factory=list)
    shared: list[SharedInput] = field(default_factory=list)
    replacements: list[Replacement] = field(default_factory=list)
    is_all_kernels: bool = False

    def refresh(self, *, force: bool = False) -> int:
        """Pack the weights that changed, or all if `force`; returns how many were packed."""
        return sum(linear.refresh(force=force) for linear in self.linears)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the replacements in place within a `with` block, and back what was there.

        One thread at a time: functions of a model's source file are replaced too, which are the
        process's.
        """
        if not self.replacements:
            yield
            return
        with _one_thread:
            before = [(x, vars(x.owner).get(x.name, _ABSENT)) for x in self.replacements]
            try:
                for x in self.replacements:
                    setattr(x.owner, x.name, x.function)
                yield
            finally:
                for x, old in reversed(before):
                    if old is _ABSENT:
                        delattr(x.owner, x.name)
                    else:
                        setattr(x.owner, x.name, old)
                for shared in self.shared:
                    shared.clear()


_ABSENT = object()
_one_thread = RLock()


def forward_of(module: nn.Module, function: Callable[..., Any]) -> Replacement:
    """Return the replacement of a module's forward."""
    return Replacement(module, "forward", function)
