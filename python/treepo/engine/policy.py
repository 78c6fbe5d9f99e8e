"""The model that samples: the trained one or a copy in another number format, made fast."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from treepo.config import EngineConfig, Packing
from treepo.engine.exact import ExactForward
from treepo.engine.fused import Fusion, Overlay, build_overlay, packing, retry_direct
from treepo.engine.fused.whole import WholeLayers
from treepo.engine.hook import AttentionContext, evaluating, install
from treepo.engine.inputs import StepInputs
from treepo.engine.kernels import ELEMENTS, Kernels
from treepo.errors import UnsupportedModelError


class SamplingPolicy:
    """Runs the forward passes of sampling.

    Attributes:
        model: The model that samples.
        kernels: CPU kernels; None where they do not apply.
    """

    def __init__(self, trained: PreTrainedModel, config: EngineConfig) -> None:
        """Copy the model if its number format differs, and find out what can be made faster.

        Args:
            trained: The model whose weights are followed; the hook is installed.
            config: `rollout_dtype` and `packing` are applied.

        Raises:
            UnsupportedModelError: If the processor is slow in the number format (see
                `EngineConfig.packing`).
        """
        self._trained = trained
        dtype = trained.dtype
        if config.rollout_dtype is not None:
            dtype = getattr(torch, config.rollout_dtype.value)
        self.model = trained if dtype == trained.dtype else _copy(trained, dtype)
        self._seen: list[tuple[int, int]] = []
        is_on_cpu = trained.device.type == "cpu"
        self.kernels = Kernels() if is_on_cpu and dtype in ELEMENTS else None
        self._overlay = Overlay()
        if self.kernels is not None and config.packing is Packing.AUTO:
            _check_is_fast(dtype, self.kernels)
            self._overlay = build_overlay(self.model, self.kernels)

    @property
    def fusions(self) -> tuple[Fusion, ...]:
        """What runs faster than in the model's own modules."""
        return self._overlay.fusions

    @property
    def is_all_kernels(self) -> bool:
        """Whether decoder layers and head compute by this package's kernels alone."""
        return self._overlay.is_all_kernels

    @property
    def whole_layers(self) -> WholeLayers | None:
        """Decoder layers that the kernels compute in one call."""
        return self._overlay.whole

    def logits(self, inputs: StepInputs, context: AttentionContext) -> Tensor:
        """Return the logits of a step's rows, [num_logit_rows, vocab_size].

        Where the model does nothing but its kernels, in one call of them; where nothing happens
        between its decoder layers, they are one.

        Args:
            inputs: Of the step.
            context: Of its attention.
        """
        direct, chain = self._overlay.direct, self._overlay.chain
        logits = None if direct is None else direct(inputs, context)
        if logits is not None:
            return logits
        compute = partial(
            self.model,
            input_ids=inputs.token_ids,
            position_ids=inputs.positions,
            use_cache=False,
            logits_to_keep=inputs.logit_rows,
            treepo=context,
        )
        output = compute() if chain is None else chain.during(compute)
        computed: Tensor = output.logits[0]
        return computed

    def follow(self, *, force: bool = False) -> None:
        """Take over weights that changed since the last time, or all if `force`."""
        if self.model is not self._trained:
            seen = [(x.data_ptr(), x._version) for x in self._trained.parameters()]
            if force or seen != self._seen:
                _copy_weights(self._trained, self.model)
                self._seen = seen
        if self.kernels is not None:
            self.kernels.follow_torch()
        self._overlay.refresh(force=force)
        retry_direct(self._overlay, self.model)

    @property
    def exact_forward(self) -> ExactForward | None:
        """Lets training compute these forwards; None if another model samples or is not packed."""
        is_packed = Fusion.PACKED_LINEAR in self.fusions
        if self.kernels is None or self.model is not self._trained or not is_packed:
            return None
        return ExactForward(self.model, self.kernels, self._overlay)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within a `with` block the model samples: evaluating, fast, without gradients."""
        install(self.model)
        with torch.inference_mode(), evaluating(self.model), self._overlay.applied():
            yield


def _copy(trained: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model of its own whose parameters have another number format; buffers keep theirs."""
    model = copy.deepcopy(trained)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype)
    return model


@torch.no_grad()
def _copy_weights(source: PreTrainedModel, target: PreTrainedModel) -> None:
    for old, new in zip(target.parameters(), source.parameters(), strict=True):
        old.copy_(new)


def _check_is_fast(dtype: torch.dtype, kernels: Kernels) -> None:
    """Refuse bfloat16 on a processor whose products in it are several times slower."""
    if dtype == torch.bfloat16 and packing(dtype, kernels) is None:
        raise UnsupportedModelError(
            "there are no fast products in bfloat16 on this processor (AVX2 or more has them), "
            "float32 is several times faster: set dtype to float32, and kv_dtype to bfloat16 for "
            "half the KV cache; packing=never samples in bfloat16 all the same"
        )
