"""A model's decoder layers as one: nothing happens between them, so one call computes all.

While a step is computed, the list of layers that the model goes through has a single item. What
that computes where the kernels cannot is the layers, one after another.
"""

from collections.abc import Callable, Iterator
from operator import attrgetter
from threading import get_ident
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from treepo.engine.fused.whole import WholeLayers

T = TypeVar("T")


class LayerChain:
    """Decoder layers that a model goes through one after another.

    Attributes:
        num_runs: How often they ran as one.
    """

    def __init__(self, model: nn.Module, whole: WholeLayers) -> None:
        """Find the lists of these layers in a model."""
        self.num_runs = 0
        self._whole = whole
        self._thread: int | None = None
        self._lists = [
            (owner, name, _LayerList(self, layers))
            for owner in model.modules()
            for name, layers in owner.named_children()
            if isinstance(layers, nn.ModuleList) and list(layers) == whole.modules
        ]
        self._code = self._code_between()

    def during(self, compute: Callable[[], T]) -> T:
        """Call a function in which, on this thread, the layers are one, where that may be.

        The lists are put before the model's own in their owners' dictionaries; what is registered
        with the modules stays as it is.
        """
        if self.is_cut():
            return compute()
        self._thread = get_ident()
        for owner, name, layers in self._lists:
            vars(owner)[name] = layers
        try:
            return compute()
        finally:
            self._thread = None
            for owner, name, _ in self._lists:
                vars(owner).pop(name, None)

    def is_one(self) -> bool:
        """Whether the layers are one for the calling thread."""
        return self._thread == get_ident()

    def run(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute all layers, one after another: by their forwards alone, as the kernels do."""
        self.num_runs += 1
        if not args:  # With some the layers do not run as wholes either.
            rotary, context = kwargs.get("position_embeddings"), kwargs.get("treepo")
            y = self._whole(slice(0, None), hidden_states, rotary, context)
            if y is not None:
                return y
        for module in self._whole.modules:
            hidden_states = module.forward(hidden_states, *args, **kwargs)
        return hidden_states

    def __getattr__(self, name: str) -> Any:
        """Attributes of the first layer, for a model that asks the list's item for some."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._whole.modules[0], name)

    __call__ = run

    @property
    def owners(self) -> list[nn.Module]:
        """The modules whose lists these are."""
        return [owner for owner, *_ in self._lists]

    def is_cut(self) -> bool:
        """Whether something may happen between the layers, or they are no longer the model's."""
        modules = self._whole.modules
        return (
            bool(_global_forward_hooks or _global_forward_pre_hooks)
            or any(map(_HOOKS, modules))
            or any(map(_PRE_HOOKS, modules))
            or self._code_between() != self._code
            or any(_items(owner._modules.get(name)) != modules for owner, name, _ in self._lists)
        )

    def _code_between(self) -> list[Any]:
        """What runs the layers: code of their types and of the owners of their lists."""
        types = list(map(type, self._whole.modules))
        owners = [(type(owner).forward, vars(owner).get("forward")) for owner, *_ in self._lists]
        return [types, [kind.__call__ for kind in set(types)], owners]


_HOOKS = attrgetter("_forward_hooks")
_PRE_HOOKS = attrgetter("_forward_pre_hooks")


def _items(module: nn.Module | None) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.ModuleList) else []


class _LayerList(nn.ModuleList):
    """A model's list of layers, which has a single item while a step is computed."""

    def __init__(self, chain: LayerChain, layers: nn.ModuleList) -> None:
        super().__init__()
        self._modules = layers._modules
        self._own = [layers]  # In a list, or it were a child.
        self._chain = chain

    def __getitem__(self, index: Any) -> Any:
        is_whole = isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1)
        return [self._chain] if is_whole and self._chain.is_one() else self._own[0][index]

    def __iter__(self) -> Iterator[Any]:
        return iter([self._chain] if self._chain.is_one() else self._own[0])
