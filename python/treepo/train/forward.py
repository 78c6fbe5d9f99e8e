"""Log-probs of packed tokens by a model: its body once a token, its head once a sampled token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from treepo.config import Activations, Autocast, UpdateConfig
from treepo.engine.exact import ExactForward
from treepo.engine.hook import AttentionContext, evaluating, install, plain_attention, probe
from treepo.errors import UnsupportedModelError
from treepo.train.head import Head, output_head, token_logprobs

_OTHER_HEADS = ("classifier_", "summary_")
_NOISE = ("drop", "jitter")


def _recompute_activations(model: Any) -> None:
    """Let transformers compute activations again in the backward pass.

    It makes embeddings require gradients too, by a hook; not reentrant, recomputing needs none.
    """
    is_hooked = hasattr(model, "_require_grads_hook")
    newer = getattr(model, "activation_checkpointing_enable", None)
    enable = newer or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if not is_hooked and hasattr(model, "_require_grads_hook"):
        model.disable_input_require_grads()


class Forward:
    """Runs tokens through a model with a given attention, and its head over chosen rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float,
        config: UpdateConfig,
        exact: ExactForward | None,
        enter: Callable[..., Any] | None = None,
    ) -> None:
        """Installs the attention hook on the model and finds out what its head computes.

        Args:
            model: a causal LM.
            temperature: divisor of the logits, above 0.
            config: number format, and what is kept for the backward pass.
            exact: makes the model compute the bits it sampled with; not together with another
                number format.
            enter: calls a function that runs the model, with the weights in place
                (`treepo.train.sharded.ShardedModel`); absent: they always are.

        Raises:
            UnsupportedModelError: if the model cannot run on trees.
        """
        self._config = config
        check_dropout(model, is_training=model.training or self._recomputes)
        probe(model)
        self.enter = enter or _call
        self.model = model
        self.exact = exact if config.autocast is Autocast.OFF else None
        self._temperature = temperature
        self._head_settings = output_head(model)
        if self._recomputes:
            _recompute_activations(model)

    @property
    def _recomputes(self) -> bool:
        return self._config.activations is Activations.RECOMPUTE

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within a `with` block the model computes as in training; backward belongs inside too."""
        with nullcontext() if self.exact is None else self.exact.applied(), self._mode():
            yield

    @contextmanager
    def _mode(self) -> Iterator[None]:
        """Let transformers recompute activations, which it does in training mode only."""
        is_needed = self._recomputes and not self.model.training
        if is_needed:
            self.model.train()
        try:
            yield
        finally:
            if is_needed:
                self.model.train(False)

    def hidden(
        self,
        token_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        context: AttentionContext,
    ) -> Tensor:
        """Returns the final hidden states, [T, d].

        Args:
            token_ids: i64[T].
            positions: i64[T], distance from the first token of each tree.
            context: attention.
        """
        check_dropout(self.model, is_training=self.model.training)
        install(self.model)  # With any other attention every token would see the whole row.
        with self._autocast():
            output = self.model.base_model(
                input_ids=self.tensor(token_ids)[None],
                position_ids=self.tensor(positions)[None],
                use_cache=False,
                treepo=context,
            )
        states: Tensor = output.last_hidden_state[0]
        return states

    def read(
        self, hidden: Tensor, rows: npt.NDArray[np.int64], token_ids: npt.NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Returns log-probs and entropies at the sampling temperature, [U] each.

        Args:
            hidden: final hidden states, [T, d].
            rows: the rows that predict, i64[U].
            token_ids: what is predicted, i64[U].
        """
        # Look-ups of embeddings add gradients up faster on a CPU than those of an index.
        head = self._head()
        # In float32 at least: where paths branch, one row gets a gradient from each.
        is_half = torch.finfo(hidden.dtype).bits < 32
        found = F.embedding(self.tensor(rows), hidden.float() if is_half else hidden)
        chosen = found.to(head.weight.dtype)
        targets = self.tensor(token_ids)
        return token_logprobs(chosen, head, targets, self._temperature, exact=self.exact)

    def plain_logprobs(self, token_ids: npt.ArrayLike) -> Tensor:
        """Log-probs of a single sequence's tokens by the model's own attention, without a tree.

        Args:
            token_ids: the sequence, int[n], n at least 2.

        Returns:
            Log-prob of every token after the first, [n - 1], without a gradient.
        """
        ids = self.tensor(np.asarray(token_ids, dtype=np.int64))
        with torch.no_grad(), plain_attention(self.model), evaluating(self.model):
            with self._autocast():
                output = self.model.base_model(input_ids=ids[None], use_cache=False)
            head = self._head()
            rows = output.last_hidden_state[0, :-1].to(head.weight.dtype)
            return token_logprobs(rows, head, ids[1:], self._temperature)[0]

    def tensor(self, array: npt.NDArray[Any]) -> Tensor:
        """Returns an array on the model's device."""
        return torch.from_numpy(array).to(self.model.device)

    def idle(self) -> None:
        """Forward and backward of one token with a gradient of zero."""
        token = self.tensor(np.zeros(1, dtype=np.int64))

        def logprob() -> Tensor:
            with self._autocast():
                output = self.model.base_model(input_ids=token[None], use_cache=False)
            head = self._head()
            rows = output.last_hidden_state[0].to(head.weight.dtype)
            return token_logprobs(rows, head, token, self._temperature)[0]

        with plain_attention(self.model):  # Backward too: it may compute the forward again.
            (self.enter(logprob) * 0.0).sum().backward()

    def _head(self) -> Head:
        """The head with the parameters that its module has now: those of a split model move."""
        module: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return replace(self._head_settings, weight=module.weight, bias=module.bias)

    def _autocast(self) -> Any:
        if self._config.autocast is Autocast.OFF:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def check_dropout(model: PreTrainedModel, *, is_training: bool) -> None:
    """Refuses noise of training mode: log-probs would not be those of sampling.

    Args:
        model: the model.
        is_training: whether it runs in training mode, as it also does to recompute activations.

    Raises:
        UnsupportedModelError: if it drops activations then, or adds noise to them.
    """
    if not is_training:
        return
    rates = {
        f"module {name}": float(module.p)
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout)
    }
    for name, value in model.config.get_text_config(decoder=True).to_dict().items():
        is_noise = any(word in name for word in _NOISE) and not name.startswith(_OTHER_HEADS)
        if is_noise and isinstance(value, float):
            rates[f"config.{name}"] = value
    for name, rate in rates.items():
        if rate > 0:
            raise UnsupportedModelError(
                f"{type(model).__name__} drops activations or adds noise in training mode, {name} "
                f"= {rate:g}: set it to 0, or call model.eval() and keep "
                "update.activations=keep, since recomputing runs in training mode"
            )
