"""Draw tokens with the CPU kernels: one pass over the logits."""

import numpy as np
from torch import Tensor

from treepo.config import SamplingParams
from treepo.engine.kernels import ELEMENTS, Kernels
from treepo.engine.sampler import DrawnArrays
from treepo.errors import NotFiniteError


def can_draw(logits: Tensor) -> bool:
    """Whether the kernels take these logits."""
    return logits.device.type == "cpu" and logits.dtype in ELEMENTS


def draw(
    kernels: Kernels,
    logits: Tensor,
    sample_rows: Tensor | None,
    uniforms: Tensor,
    params: SamplingParams,
) -> DrawnArrays:
    """Draw one token for each sample; meaning and errors as in `treepo.engine.sampler.sample`.

    Args:
        kernels: The kernels.
        logits: [num_logit_rows, vocab_size], rows contiguous; not changed.
        sample_rows: i64 [num_samples], the row that each sample reads; None: one to one.
        uniforms: f64 [num_samples] in [0, 1).
        params: Temperature, top-k, top-p and min-p.
    """
    num_samples = len(uniforms)
    token_ids = np.empty(num_samples, dtype=np.uint32)
    logprobs = np.empty(num_samples, dtype=np.float32)
    entropies = np.empty(num_samples, dtype=np.float32)
    bad_row = kernels.native.sample(
        ELEMENTS[logits.dtype],
        (logits.data_ptr(), *logits.shape, logits.stride(0)),
        None if sample_rows is None else sample_rows.numpy(),
        uniforms.numpy(),
        (params.temperature, params.top_k, params.top_p, params.min_p),
        token_ids,
        logprobs,
        entropies,
    )
    if bad_row is not None:
        raise NotFiniteError(f"row {bad_row} of the logits holds a NaN or an infinity")
    return DrawnArrays(token_ids, logprobs, entropies)
