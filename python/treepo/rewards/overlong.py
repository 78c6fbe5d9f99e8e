"""A soft punishment of completions that come close to their limit."""

from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def overlong_punishment(
    lengths: npt.NDArray[Any], *, max_tokens: int | npt.NDArray[Any], buffer: int, penalty: float
) -> F64:
    """Return what is added to each reward: 0 up to max_tokens - buffer, then falling to -penalty.

    Soft overlong punishment of DAPO, arXiv:2503.14476, eq. 13.

    Args:
        lengths: Tokens of each completion, [n].
        max_tokens: Tokens of a completion at most, one number or one a completion.
        buffer: Tokens over which the punishment grows; 0 is none at all.
        penalty: Punishment of a completion of max_tokens.

    Returns:
        f64[n], 0 or negative.
    """
    if buffer == 0:
        return np.zeros(len(lengths))
    within = np.minimum(buffer, max_tokens)  # What a long prompt leaves may be less.
    excess = np.asarray(lengths, dtype=np.float64) - (max_tokens - within)
    punished: F64 = -penalty * np.clip(excess / within, 0.0, 1.0)
    return punished
