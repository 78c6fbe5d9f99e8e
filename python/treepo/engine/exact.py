"""The forwards of sampling, for training: a token gets the bits of log-prob it was sampled with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from treepo.engine.fused import Overlay
from treepo.engine.kernels import Kernels


class ExactForward:
    """Lets a model that samples on a CPU compute the same bits with a gradient.

    Attributes:
        kernels: The CPU kernels that sample.
    """

    def __init__(self, model: PreTrainedModel, kernels: Kernels, overlay: Overlay) -> None:
        """Name the model and what makes its sampling fast.

        Args:
            model: The model that samples and is trained.
            kernels: Its kernels.
            overlay: Its overlay; packed linear layers are part of it, since others do not give a
                row the same bits in every batch.
        """
        self.kernels = kernels
        self._head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._overlay = overlay

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within a `with` block the model computes as it samples; backward belongs inside too.

        Weights that changed are packed anew, as their versions tell: after the step of a fused
        optimizer of your own, call `torch.autograd.graph.increment_version` on them.
        """
        self.kernels.follow_torch()
        self._overlay.refresh()
        with self._overlay.applied():
            yield

    def head(self, hidden: Tensor) -> Tensor:
        """Return the head's linear outputs [n, V] of hidden rows [n, d]."""
        output: Tensor = self._head(hidden)
        return output
