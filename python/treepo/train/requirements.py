"""What a run needs of its model and data, checked before its first step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from treepo.config import TrainConfig, TreeAttention
from treepo.engine import Engine
from treepo.errors import InvalidConfigError, NotFiniteError
from treepo.train.dataset import PromptSource, check_rows


def check_prompts(
    source: PromptSource,
    eval_rows: Sequence[Mapping[str, Any]],
    engine: Engine,
    config: TrainConfig,
) -> None:
    """Check that the prompts which the run will read can be used.

    Steps that sample more batches, or several passes, can read rows beyond those of one batch a
    step: of these, the rows of the first pass are checked.

    Raises:
        DataError: Some cannot; their rows are named.
    """
    num_reads = config.num_steps * config.prompts_per_step * config.max_sampling_batches
    source.check(engine.token_ids, num_reads + config.max_unfinished_trees)
    check_rows(eval_rows, engine.token_ids, "evaluation", range(len(eval_rows)))


def check_attention(config: TrainConfig, device: torch.device) -> None:
    """Check that the update's attention has a gradient on the model's device.

    Raises:
        InvalidConfigError: It has not.
    """
    if config.update.attention is TreeAttention.FLEX and device.type != "cuda":
        raise InvalidConfigError(
            f"update.attention=flex has a gradient on CUDA only, and the model is on {device}; "
            "set update.attention=auto"
        )


def check_weights(model: Any) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        NotFiniteError: One is; the parameter is named.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise NotFiniteError(
                f"the model's parameter {name} holds NaN or infinity; take another checkpoint"
            )
