"""Make a model's overlay: find what can be replaced, try each kind, keep what computes the same."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from treepo.engine.fused.chain import LayerChain
from treepo.engine.fused.decoder import is_layer, layers
from treepo.engine.fused.direct import DirectForward, like
from treepo.engine.fused.ends import Ends, find_ends
from treepo.engine.fused.linear import PackedLinear, SharedInput, layers_by_input
from treepo.engine.fused.modules import activations, gates, norms, rotaries
from treepo.engine.fused.overlay import Fusion, Overlay, Replacement, forward_of
from treepo.engine.fused.products import packing, uses_panels
from treepo.engine.fused.whole import WholeLayers
from treepo.engine.hook import evaluating
from treepo.engine.kernels import Kernels

_TRIAL_TOKENS = 6
# Tolerated difference of logits as a part of the largest logit. Rounding grows from layer to layer,
# in random models by a factor of a hundred; wrong replacements are off by the logits themselves.
_TOLERANCE = {torch.float32: 2.0**-15, torch.bfloat16: 0.5}


_FINDERS = {
    Fusion.NORM: norms,
    Fusion.GATE: gates,
    Fusion.ACTIVATION: activations,
    Fusion.ROTARY: rotaries,
}


class _Trial(NamedTuple):
    """What a forward pass of a few tokens did.

    Attributes:
        logits: [num_tokens, vocab_size].
        linears: The linear layers that ran, in order, with their inputs.
        attention: What each attention module without sinks asked for: keywords of
            `AttentionContext.attend`.
    """

    logits: Tensor
    linears: list[tuple[nn.Linear, Tensor]]
    attention: dict[nn.Module, dict[str, Any]]


def build_overlay(model: PreTrainedModel, kernels: Kernels) -> Overlay:
    """Return the overlay of a model on a CPU, on which the hook is installed.

    All kinds of `Fusion` are tried at once. If that raises, or moves the logits of a few tokens
    by more than rounding, each is tried in turn together with those already kept.
    """
    expected = _try(model)
    overlay = _tried(model, kernels, expected)
    overlay = _chained(overlay, model)
    overlay = replace(overlay, direct=_direct(overlay, model))
    return replace(overlay, is_all_kernels=_is_all_kernels(overlay, model, kernels))


def _tried(model: PreTrainedModel, kernels: Kernels, expected: _Trial) -> Overlay:
    overlay = Overlay()
    for fusion in Fusion:
        overlay = _extended(overlay, fusion, model, kernels, expected) or overlay
    if _computes(overlay, model, expected):
        return overlay
    overlay = Overlay()
    for fusion in Fusion:
        candidate = _extended(overlay, fusion, model, kernels, expected)
        if candidate is not None and _computes(candidate, model, expected):
            overlay = candidate
    return overlay


def _is_all_kernels(overlay: Overlay, model: PreTrainedModel, kernels: Kernels) -> bool:
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return (
        uses_panels(model.dtype, kernels)
        and sum(is_layer(x.owner) for x in overlay.replacements) == num_layers
        and any(head is module for linear in overlay.linears for module in linear.modules)
    )


def _extended(
    overlay: Overlay,
    fusion: Fusion,
    model: PreTrainedModel,
    kernels: Kernels,
    trial: _Trial,
) -> Overlay | None:
    """Return the overlay with one more kind; None if the model has nothing of it."""
    if fusion in (Fusion.PACKED_LINEAR, Fusion.SHARED_INPUT):
        others = [x for x in overlay.replacements if not isinstance(x.owner, nn.Linear)]
        return _with_linears(overlay, fusion, others, trial.linears, kernels)
    whole = None
    if fusion is Fusion.DECODER_LAYER:
        whole = WholeLayers(kernels)
        added = list(layers(model, whole, overlay.linears, trial.attention))
    else:
        added = list(_FINDERS[fusion](model, kernels))
    if not added:
        return None
    return Overlay(
        fusions=(*overlay.fusions, fusion),
        linears=overlay.linears,
        shared=overlay.shared,
        replacements=[*overlay.replacements, *added],
        whole=whole,
    )


def _with_linears(
    overlay: Overlay,
    fusion: Fusion,
    others: list[Replacement],
    calls: list[tuple[nn.Linear, Tensor]],
    kernels: Kernels,
) -> Overlay | None:
    groups = layers_by_input(calls)
    pack = packing(groups[0][0].weight.dtype, kernels) if groups else None
    if pack is None:
        return None
    if fusion is Fusion.PACKED_LINEAR:
        groups = [[module] for group in groups for module in group]
    elif Fusion.PACKED_LINEAR not in overlay.fusions or all(len(x) == 1 for x in groups):
        return None
    # What is packed alone already stays as it is.
    packed = {id(x.modules[0]): x for x in overlay.linears if len(x.modules) == 1}
    result = Overlay(fusions=(*overlay.fusions, fusion), replacements=list(others))
    for group in groups:
        alone = packed.get(id(group[0])) if len(group) == 1 else None
        result.linears.append(PackedLinear(group, pack) if alone is None else alone)
        result.replacements += _forwards(result.linears[-1], result)
    return result


def _forwards(linear: PackedLinear, overlay: Overlay) -> Iterable[Replacement]:
    if len(linear.modules) == 1:
        yield forward_of(linear.modules[0], lambda x: linear(x)[0])
        return
    shared = SharedInput(linear)
    overlay.shared.append(shared)
    for index, module in enumerate(linear.modules):
        yield forward_of(module, shared.forward_of(index))


def _computes(overlay: Overlay, model: PreTrainedModel, expected: _Trial) -> bool:
    """Whether the model under the overlay gives the expected logits up to rounding."""
    try:
        overlay.refresh()
        with overlay.applied():
            got = _try(model)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    if got.attention != expected.attention:
        return False
    difference = (got.logits.float() - expected.logits.float()).abs().max()
    limit = _TOLERANCE[expected.logits.dtype] * expected.logits.float().abs().max()
    return bool(difference <= limit)


def _chained(overlay: Overlay, model: PreTrainedModel) -> Overlay:
    """Return the overlay with its decoder layers as one, if the model computes the same then.

    It does not if it does something between its layers or with what comes out of one of them.
    """
    if overlay.whole is None:
        return overlay
    chain = LayerChain(model, overlay.whole)
    with overlay.applied():
        expected = _logits(model, _Causal())
        try:
            got = chain.during(lambda: _logits(model, _Causal()))
        except Exception:  # Of the model's own code, which any number of layers may upset.
            return overlay
    is_same = chain.num_runs == 1 and torch.equal(got, expected)
    return replace(overlay, chain=chain if is_same else None)


def retry_direct(overlay: Overlay, model: PreTrainedModel) -> None:
    """Try the model by one call again, where its settings are not those of an earlier trial."""
    if overlay.direct is None:
        return
    with evaluating(model):
        is_new = overlay.direct.has_new_settings()
    if is_new:
        overlay.direct = _direct(overlay, model) or overlay.direct


def _direct(overlay: Overlay, model: PreTrainedModel) -> DirectForward | None:
    """Return the model by one call, if its layers and ends give the same, one after another."""
    if overlay.whole is None or overlay.chain is None:
        return None
    try:
        with overlay.applied(), torch.no_grad(), evaluating(model):
            ends = find_ends(model, overlay.chain, overlay.linears, overlay.whole)
            if ends is None:
                return None
            direct = DirectForward(overlay.chain, overlay.whole, ends)
            tokens, positions = _special_tokens(model)
            expected = _logits(model, _Causal(), tokens, positions)
            got = _by_ends(ends, overlay.chain, tokens, positions)
            is_same = got.dtype == expected.dtype and torch.equal(got, expected)
            return direct if is_same and not direct.is_cut() else None
    except Exception:  # Of the model's own code, whose parts may want something else.
        return None


def _by_ends(ends: Ends, chain: LayerChain, tokens: Tensor, positions: Tensor) -> Tensor:
    """Return the logits [num_tokens, vocab_size] of a model's modules, one after another."""
    rotary = ends.angles(like(ends.embedding.weight), positions)
    embedded = ends.embedding(tokens)
    hidden = chain.run(embedded, position_embeddings=rotary, treepo=_Causal())
    [head] = ends.head.modules
    logits: Tensor = head(ends.norm(hidden))[0]
    return logits


def _special_tokens(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return tokens that models may treat apart, and positions up to the last, [1, num_tokens]."""
    config = model.config.get_text_config(decoder=True)
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = [x for name in names if type(x := getattr(config, name, None)) is int]
    tokens, positions = _trial_tokens(model)
    others = [x for x in (0, config.vocab_size - 1, *ids) if 0 <= x < config.vocab_size]
    num_positions = getattr(config, "max_position_embeddings", None) or len(others)
    places = [num_positions - 1 - i % num_positions for i in range(len(others))]
    more = torch.tensor([others, places[::-1]], device=model.device)
    return torch.cat([tokens, more[:1]], 1), torch.cat([positions, more[1:]], 1)


def _try(model: PreTrainedModel) -> _Trial:
    linears: list[tuple[nn.Linear, Tensor]] = []

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        if type(module) is nn.Linear and len(args) == 1:
            linears.append((module, args[0]))

    handles = [
        module.register_forward_pre_hook(record)
        for module in model.modules()
        if type(module) is nn.Linear
    ]
    context = _Causal()
    try:
        return _Trial(_logits(model, context), linears, context.calls)
    finally:
        for handle in handles:
            handle.remove()


def _logits(
    model: PreTrainedModel,
    context: "_Causal",
    tokens: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    if tokens is None:
        tokens, positions = _trial_tokens(model)
    with torch.no_grad(), evaluating(model):
        output = model(input_ids=tokens, position_ids=positions, use_cache=False, treepo=context)
    logits: Tensor = output.logits[0]
    return logits


def _trial_tokens(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return tokens and their positions, [1, num_tokens] each."""
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    positions = torch.arange(_TRIAL_TOKENS, device=model.device)[None]
    return (positions * 7 + 3) % vocab_size, positions


class _Causal:
    """Plain causal attention over the trial's tokens; an `AttentionContext` that takes notes."""

    def __init__(self) -> None:
        self.calls: dict[nn.Module, dict[str, Any]] = {}

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
        if sinks is None:  # Sinks may be made anew at each call; such layers are left alone.
            self.calls[module] = {
                "scaling": scaling,
                "sliding_window": sliding_window,
                "softcap": softcap,
                "sinks": None,
            }
        output = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2)
