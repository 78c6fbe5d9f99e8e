"""What a run needs of its model and data, checked before its first step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from treepo.config import TrainConfig, TreeAttention
from treepo.engine import Engine
from treepo.errors import InvalidConfigError, InvalidInputError, NotFiniteError
from treepo.train.dataset import PromptSource, check_rows
from treepo.train.progress import tell

_MAX_CHECKED_PROMPTS = 10_000
"""More would keep a run from its first step for minutes."""
NUM_ROWS_FOR_COLUMNS = 100
"""First rows whose columns the reward functions have to take."""


def check_parts(model: Any, tokenizer: Any, *datasets: Any) -> None:
    """Check that model, tokenizer and data are of the kinds that a trainer takes.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        *datasets: Training and evaluation data, None for none.

    Raises:
        InvalidInputError: One is not; the message names what to hand in instead.
    """
    kind = type(model).__name__
    if isinstance(model, str | Path):
        raise InvalidInputError(
            f"the model is the path {model}; hand in AutoModelForCausalLM.from_pretrained(path)"
        )
    if not isinstance(model, PreTrainedModel):
        raise InvalidInputError(
            f"the model is a {kind}, not a transformers model; of a PeftModel hand in the base "
            "model and set lora.rank"
        )
    if tokenizer is None:
        raise InvalidInputError("training needs a tokenizer: rewards read completions as text")
    for rows in datasets:
        if rows is None:
            continue
        if isinstance(rows, str | Path):
            raise InvalidInputError(
                f"the data set is the path {rows}; hand in rows, such as those of "
                "treepo.prompts.load_jsonl(path)"
            )
        if isinstance(rows, Mapping):
            raise InvalidInputError(
                f"the data set is a {type(rows).__name__} of {list(rows)}; choose one, such as "
                "dataset['train']"
            )
        if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise InvalidInputError(
                f"the data set is a {type(rows).__name__}, whose rows have no number; hand in "
                "list(dataset)"
            )


def say_what_will_disappoint(model: Any, config: TrainConfig) -> None:
    """Warn of 16-bit weights, a GPU that is not used, and a search with one first path."""
    search = config.search
    if search.initial_divergence == 1 and search.max_initial_divergence is None:
        tell(
            "note: search.initial_divergence=1: all answers share their first segment, which has "
            "nothing to be compared with and is not trained"
        )
    trained = [x for x in model.parameters() if x.requires_grad and x.is_floating_point()]
    if any(torch.finfo(parameter.dtype).bits < 32 for parameter in trained):
        tell(
            f"warning: the trained weights are {model.dtype}, which rounds small updates away: "
            "load them in float32 (engine.dtype, or dtype=torch.float32 in from_pretrained), and "
            "set engine.rollout_dtype=bfloat16 and update.autocast=bfloat16 for speed"
        )
    if model.device.type == "cpu" and torch.cuda.is_available():
        tell("note: the model is on the CPU and there is a GPU: engine.device=cuda uses it")


def check_prompts(
    source: PromptSource,
    eval_rows: Sequence[Mapping[str, Any]],
    engine: Engine,
    config: TrainConfig,
) -> None:
    """Check that the prompts which the run will read can be used.

    Rows are read in a shuffled order; of very many, the first are checked, and a later one that
    cannot be used ends the run at its step with a checkpoint.

    Raises:
        DataError: Some cannot; their rows are named.
    """
    a_batch = config.prompts_per_step + config.max_unfinished_trees
    num_reads = config.num_steps * config.max_sampling_batches * a_batch
    source.check(engine.token_ids, min(num_reads, _MAX_CHECKED_PROMPTS))
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
    """Check that weights can be trained: their number format, and that none is NaN or infinite.

    Raises:
        InvalidConfigError: They are float16.
        NotFiniteError: One is NaN or infinite; the parameter is named.
    """
    if model.dtype is torch.float16:
        raise InvalidConfigError(
            "the model is float16, in which gradients and AdamW's averages vanish; load it in "
            "float32 (engine.dtype, or dtype=torch.float32 in from_pretrained)"
        )
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise NotFiniteError(
                f"the model's parameter {name} holds NaN or infinity; take another checkpoint"
            )
