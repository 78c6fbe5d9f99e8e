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
from threading import Lock
from typing import TYPE_CHECKING, Any

from torch import nn

from treepo.engine.fused.chain import LayerChain
from treepo.engine.fused.linear import PackedLinear, SharedInput
from treepo.engine.fused.whole import WholeLayers

if TYPE_CHECKING:
    from treepo.engine.fused.direct import DirectForward


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
        whole: Decoder layers that the kernels compute in one call.
        chain: The same as one, if nothing happens between them.
        direct: The whole model by one call, if it does nothing else.
        is_all_kernels: Whether decoder layers and head compute by this package's kernels alone.
    """

    fusions: tuple[Fusion, ...] = ()
    linears: list[PackedLinear] = field(default_factory=list)
    shared: list[SharedInput] = field(default_factory=list)
    replacements: list[Replacement] = field(default_factory=list)
    whole: WholeLayers | None = None
    chain: LayerChain | None = None
    direct: "DirectForward | None" = None
    is_all_kernels: bool = False

    def refresh(self, *, force: bool = False) -> int:
        """Pack the weights that changed, or all if `force`; returns how many were packed."""
        return sum(linear.refresh(force=force) for linear in self.linears)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the replacements in place within a `with` block, and back what was there.

        Several overlays may be in place at once, also of several threads and left in any order:
        functions of a model's source file are the process's.
        """
        with _swapping:
            for x in self.replacements:
                _put(x)
        try:
            yield
        finally:
            with _swapping:
                for x in reversed(self.replacements):
                    _take_off(x)
            for shared in self.shared:
                shared.clear()


@dataclass(slots=True)
class _Place:
    """A replaced attribute: what it was, and what is in force, the last of it on top."""

    before: Any
    functions: list[Callable[..., Any]] = field(default_factory=list)


_ABSENT = object()
_swapping = Lock()
_places: dict[tuple[int, str], _Place] = {}
"""Where replacements are in force now, by owner and name."""


def _put(x: Replacement) -> None:
    before = vars(x.owner).get(x.name, _ABSENT)
    place = _places.setdefault((id(x.owner), x.name), _Place(before))
    place.functions.append(x.function)
    setattr(x.owner, x.name, x.function)


def _take_off(x: Replacement) -> None:
    place = _places[id(x.owner), x.name]
    place.functions.remove(x.function)
    if place.functions:
        setattr(x.owner, x.name, place.functions[-1])
        return
    del _places[id(x.owner), x.name]
    if place.before is _ABSENT:
        delattr(x.owner, x.name)
    else:
        setattr(x.owner, x.name, place.before)


def forward_of(module: nn.Module, function: Callable[..., Any]) -> Replacement:
    """Return the replacement of a module's forward."""
    return Replacement(module, "forward", function)
