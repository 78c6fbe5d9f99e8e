"""A model's decoder layers as one: nothing happens between them, so one call computes all.

While a step is computed, the list of layers that the model goes through has a single item. What
that computes where the kernels cannot is the layers, one after another.
"""

from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from treepo.engine.fused.overlay import Replacement
from treepo.engine.fused.whole import WholeLayers

T = TypeVar("T")


class LayerChain:
    """Decoder layers that a model goes through one after another."""

    def __init__(self, whole: WholeLayers) -> None:
        """Take the layers."""
        self.whole = whole
        self._types = [type(module) for module in whole.modules]
        self._thread: int | None = None

    def during(self, compute: Callable[[], T]) -> T:
        """Call a function in which, on this thread, the layers are one."""
        self._thread = get_ident()
        try:
            return compute()
        finally:
            self._thread = None

    @property
    def is_one(self) -> bool:
        """Whether the layers are one here and now: nothing acts between them."""
        return self._thread == get_ident() and not self._is_cut()

    def _is_cut(self) -> bool:
        modules = self.whole.modules
        return (
            bool(_global_forward_hooks or _global_forward_pre_hooks)
            or any(module._forward_hooks or module._forward_pre_hooks for module in modules)
            or [type(module) for module in modules] != self._types
        )

    def replacements(self, model: nn.Module) -> Iterator[Replacement]:
        """Yield what is put in the place of the model's list of these layers."""
        for owner in model.modules():
            for name, layers in owner.named_children():
                if isinstance(layers, nn.ModuleList) and list(layers) == self.whole.modules:
                    yield Replacement(owner, name, _LayerList(self, layers))


class _LayerList(nn.ModuleList):
    """The model's list of layers, which has a single item while a step is computed."""

    def __init__(self, chain: LayerChain, layers: nn.ModuleList) -> None:
        super().__init__()
        self._modules = layers._modules
        self._own = [layers]  # In a list, or it were a child.
        self._chain = chain
        self._all = _AllLayers(chain.whole)

    def __getitem__(self, index: Any) -> Any:
        is_whole = isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1)
        return [self._all] if is_whole and self._chain.is_one else self._own[0][index]

    def __iter__(self) -> Iterator[Any]:
        return iter([self._all] if self._chain.is_one else self._own[0])


class _AllLayers:
    """All layers one after another; has the attributes of the first."""

    def __init__(self, whole: WholeLayers) -> None:
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole.modules[0], name)

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        rotary, context = kwargs.get("position_embeddings"), kwargs.get("treepo")
        y = self._whole(slice(0, None), hidden_states, rotary, context)
        if y is not None:
            return y
        for module in self._whole.modules:  # As the kernels do: by their forwards alone.
            hidden_states = module.forward(hidden_states, *args, **kwargs)
        return hidden_states
