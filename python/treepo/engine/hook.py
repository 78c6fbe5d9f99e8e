"""The one attention function of every model, and what a one-token probe learns through it.

The function is registered with transformers' `AttentionInterface` under the name "treepo". It does
no arithmetic: it hands query, key and value to the context that travels through the forward pass
as the keyword `treepo=`. Sampling passes a paged context, training a packed one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from treepo.engine.support import check_config, check_windows
from treepo.errors import UnsupportedModelError

NAME = "treepo"

# What some families add to attention and no context implements; passing over one would be wrong.
_UNSUPPORTED_KWARGS = ("position_bias", "indices", "block_indices")


class AttentionContext(Protocol):
    """Computes attention for the tokens of one forward pass.

    One that also has the rest of `PagedContext` lets the kernels compute whole layers.
    """

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
        """Attend from `query` to the keys the context defines.

        Args:
            module: The attention module that calls; `module.layer_idx` names the layer.
            query: [1, num_heads, num_tokens, key_dim], rotary embedding applied.
            key: [1, num_kv_heads, num_tokens, key_dim], rotary embedding applied.
            value: [1, num_kv_heads, num_tokens, value_dim].
            scaling: Factor on the scores; None means key_dim ** -0.5.
            sliding_window: A query at position p sees keys at positions above p - sliding_window.
            softcap: Scores become softcap * tanh(scores / softcap).
            sinks: [num_heads], one extra logit a head in the softmax, without a value.

        Returns:
            [1, num_tokens, num_heads, value_dim].
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """Attention of one layer: head counts, head widths and the features it asks for."""

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    sliding_window: int | None
    softcap: float | None
    has_sinks: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class KVShapes:
    """Attention of every layer, in layer order, and the dtype of keys and values."""

    layers: tuple[LayerShape, ...]
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of the keys and values of one token over all layers.

        A pool may take more, where it fills up heads to whole vectors (`Layout`).
        """
        width = sum(x.num_kv_heads * (x.key_dim + x.value_dim) for x in self.layers)
        return width * self.dtype.itemsize


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    treepo: AttentionContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Hand one layer's attention to the context `treepo`; transformers calls this.

    Raises:
        UnsupportedModelError: If no context was passed or the layer asks for something that no
            context implements.
    """
    if treepo is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} ran without a treepo context; use "
            "treepo.engine.plain_attention(model) around a plain forward or generate"
        )
    _check_call(module, attention_mask, dropout, kwargs)
    output = treepo.attend(
        module,
        query,
        key,
        value,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return output, None


def _check_call(
    module: nn.Module, mask: Tensor | None, dropout: float, kwargs: dict[str, Any]
) -> None:
    name = type(module).__name__
    for key in _UNSUPPORTED_KWARGS:
        if kwargs.get(key) is not None:
            raise UnsupportedModelError(f"{name} passes {key} to attention, which is not supported")
    if mask is not None:
        raise UnsupportedModelError(f"{name} builds an attention mask of its own")
    if kwargs.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise UnsupportedModelError(f"{name} asks for attention that is not causal")
    if dropout > 0:
        raise UnsupportedModelError(
            f"{name} asks for attention dropout {dropout}; set it to 0 in the model's config"
        )


def install(model: PreTrainedModel) -> None:
    """Make `model` call the hook in every attention layer. Idempotent.

    Raises:
        UnsupportedModelError: If the model's class cannot take an attention function.
    """
    AttentionInterface.register(NAME, attention)
    if model.config._attn_implementation == NAME:
        return
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{type(model).__name__} does not use transformers' AttentionInterface"
        )
    model.set_attn_implementation(NAME)


@contextmanager
def unhooked_if_refused(model: PreTrainedModel) -> Iterator[None]:
    """Put back the attention that `model` had if the `with` block raises: it computes as before."""
    before = model.config._attn_implementation
    try:
        yield
    except BaseException:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
        raise


@contextmanager
def plain_attention(model: PreTrainedModel, implementation: str = "eager") -> Iterator[None]:
    """Run `model` with one of transformers' own attention functions inside a `with` block.

    Args:
        model: A model on which the hook is installed or not; its state is restored.
        implementation: "eager", "sdpa" or another name that transformers knows.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class _Probe:
    """A context that records each call and lets a lone token attend to itself."""

    def __init__(self) -> None:
        self.calls: list[tuple[int | None, LayerShape]] = []
        self.dtype = torch.float32

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None,  # noqa: ARG002
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        self.dtype = key.dtype
        shape = LayerShape(
            num_heads=query.shape[1],
            num_kv_heads=key.shape[1],
            key_dim=key.shape[-1],
            value_dim=value.shape[-1],
            sliding_window=sliding_window,
            softcap=softcap,
            has_sinks=sinks is not None,
        )
        self.calls.append((getattr(module, "layer_idx", None), shape))
        group = query.shape[1] // key.shape[1]
        return value.repeat_interleave(group, dim=1).transpose(1, 2)


def probe(model: PreTrainedModel) -> KVShapes:
    """Install the hook, run one token and return the shapes that the attention layers work on.

    Raises:
        UnsupportedModelError: If the hook is not called exactly once for every layer, if keys,
            values or logits have a shape the engine cannot use, or if the configuration shows an
            architecture that is not supported (see `treepo.engine.support`). The model computes
            as before then.
    """
    name = type(model).__name__
    check_config(model.config, name)
    with unhooked_if_refused(model):
        install(model)
        return _shapes(model, name)


def _shapes(model: PreTrainedModel, name: str) -> KVShapes:
    context = _Probe()
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    try:
        with torch.no_grad(), evaluating(model):
            model(
                input_ids=token,
                position_ids=token,
                use_cache=False,
                logits_to_keep=token[0],
                treepo=context,
            )
    except (UnsupportedModelError, TypeError) as error:
        raise UnsupportedModelError(f"{name} is not supported: {error}") from error
    expected = model.config.get_text_config(decoder=True).num_hidden_layers
    layers = [index for index, _ in context.calls]
    if layers != list(range(expected)):
        raise UnsupportedModelError(
            f"{name} has {expected} layers and its attention hook was called for "
            f"layers {layers}; models with state other than attention keys and values, or whose "
            "code drops keyword arguments, are not supported"
        )
    shapes = dict(context.calls)
    check_windows(model.config, [shapes[i].sliding_window for i in range(expected)], name)
    return KVShapes(layers=tuple(shapes[i] for i in range(expected)), dtype=context.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of `model` in evaluation mode and restore each one's own flag after."""
    flags = [(module, module.training) for module in model.modules() if module.training]
    for module, _ in flags:
        module.training = False
    try:
        yield
    finally:
        for module, _ in flags:
            module.training = True
