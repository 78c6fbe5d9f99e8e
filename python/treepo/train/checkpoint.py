"""Checkpoints of a run: complete or not there, and nothing pickled.

A checkpoint is the folder `checkpoints/step_N` of a run: a Hugging Face model folder, and in its
folder `training` the optimizer's tensors as safetensors and the state of the loop as JSON, where
loaders that read every `*.safetensors` of a model do not look. It is written beside its
place, gets its marker file last and is then renamed, so that a process that dies at any moment
leaves the earlier checkpoints and at most a folder that nobody reads.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from treepo.errors import CheckpointError
from treepo.train.adapters import Adapters
from treepo.train.split_tensors import like, whole

FOLDER = "checkpoints"
MARKER = "COMPLETE"
_TRAINING = Path("training")
_STATE = _TRAINING / "rollout_state.json"
_OPTIMIZER = _TRAINING / "optimizer.safetensors"
_OPEN_TREES = _TRAINING / "open_trees.bin"
_PREFIX = "step_"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopState:
    """What the training loop has to know to go on; random numbers are keyed, not kept.

    Attributes:
        step: Finished rollout steps.
        cursor: Prompts drawn; also the key of the next tree, so that no key comes twice.
        policy_version: Version of the weights.
        num_tokens: Tokens sampled.
        steps_without_signal: Latest steps in a row in which the rewards of every tree agreed.
    """

    step: int = 0
    cursor: int = 0
    policy_version: int = 0
    num_tokens: int = 0
    steps_without_signal: int = 0

    def replace(self, **changes: int) -> Self:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def save(
    run_dir: Path,
    state: LoopState,
    *,
    model: Any,
    tokenizer: Any,
    optimizer_tensors: Mapping[str, Tensor],
    keep: int,
    adapters: Adapters | None = None,
    open_trees: bytes | None = None,
) -> Path:
    """Write the checkpoint of `state.step` and delete all but the newest ones.

    Args:
        run_dir: Folder of the run.
        state: State of the loop.
        model: A transformers model.
        tokenizer: Its tokenizer; None for none.
        optimizer_tensors: What `optimizer_tensors` returned.
        keep: Checkpoints to keep.
        adapters: The model's adapters: the model folder then has their effect in its weights, and
            the folder `adapter` has them alone.
        open_trees: Trees that go on in the next step; None for none.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: It cannot be written; earlier checkpoints stay.
    """
    root = run_dir / FOLDER
    target = root / f"{_PREFIX}{state.step}"
    if is_complete(target):
        return target
    writing = root / f".writing_{_PREFIX}{state.step}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for left_over in (target, *root.glob(".writing_*")):
            shutil.rmtree(left_over, ignore_errors=True)
        writing.mkdir()
        if adapters is None:
            model.save_pretrained(writing)
        else:
            model.save_pretrained(writing, state_dict=adapters.merged())
            adapters.save(writing)
        if tokenizer is not None:
            tokenizer.save_pretrained(writing)
        (writing / _TRAINING).mkdir()
        save_file(dict(optimizer_tensors), writing / _OPTIMIZER)
        (writing / _STATE).write_text(json.dumps(dataclasses.asdict(state), indent=2) + "\n")
        if open_trees is not None:
            (writing / _OPEN_TREES).write_bytes(open_trees)
        _flush(writing)
        (writing / MARKER).write_text("")
        _flush(writing)
        writing.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise CheckpointError(
            f"cannot write {target}: {error}; make room, then resume from the newest checkpoint"
        ) from None
    except ValueError as error:
        shutil.rmtree(writing, ignore_errors=True)
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"the model or tokenizer cannot be saved: {reason}") from None
    for old in complete_checkpoints(run_dir)[:-keep]:
        # Without its marker first, a deletion cut short leaves no half checkpoint that looks whole.
        (old / MARKER).unlink()
        shutil.rmtree(old, ignore_errors=True)
    return target


def is_complete(folder: Path) -> bool:
    """Whether a folder is a whole checkpoint."""
    return (folder / MARKER).is_file()


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    folders = (run_dir / FOLDER).glob(f"{_PREFIX}*")
    numbered = [folder for folder in folders if folder.name.removeprefix(_PREFIX).isdigit()]
    return sorted(filter(is_complete, numbered), key=lambda x: int(x.name.removeprefix(_PREFIX)))


def latest(run_dir: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, None if there is none."""
    found = complete_checkpoints(run_dir)
    return found[-1] if found else None


def damaged(folder: Path, reason: object) -> CheckpointError:
    """Return the error for a checkpoint that cannot be read: why, and how to go on without it."""
    return CheckpointError(
        f"{' '.join(str(reason).split())[:300]}; if {folder} is damaged, delete it to go on from "
        "the checkpoint before it"
    )


def load_state(folder: Path) -> LoopState:
    """Read the state of the loop.

    Raises:
        CheckpointError: The folder is no complete checkpoint of this version.
    """
    if not is_complete(folder):
        raise CheckpointError(f"{folder} is not a complete checkpoint: it has no {MARKER} file")
    try:
        return LoopState(**json.loads((folder / _STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder, f"cannot read {folder / _STATE}: {error}") from None


def load_open_trees(folder: Path) -> bytes | None:
    """Read the trees that a run was growing; None if all were done."""
    file = folder / _OPEN_TREES
    return file.read_bytes() if file.is_file() else None


def load_weights(folder: Path, model: Any) -> None:
    """Put a checkpoint's weights into a model of the same class.

    Raises:
        CheckpointError: The weights cannot be read or do not fit the model.
    """
    try:
        saved = type(model).from_pretrained(folder, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
    except (OSError, RuntimeError, SafetensorError) as error:
        raise damaged(folder, f"its weights do not fit the model: {error}") from None


def load_optimizer(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Put a checkpoint's optimizer tensors into an optimizer over the same parameters.

    Raises:
        CheckpointError: The tensors cannot be read or name parameters that the model lacks.
    """
    try:
        tensors = load_file(folder / _OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise damaged(folder, f"cannot read {folder / _OPTIMIZER}: {error}") from None
    names = _parameter_names(model)
    parameters = dict(model.named_parameters())
    position = {name: index for index, name in enumerate(_ordered_names(names, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        field, _, name = key.partition("/")
        if name not in position:
            raise CheckpointError(f"{folder / _OPTIMIZER} has the unknown parameter '{name}'")
        state.setdefault(position[name], {})[field] = like(parameters[name], tensor)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state by `field/parameter`; of a split model in all processes."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for field, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{field}/{name}"] = whole(value.detach()).cpu().contiguous()
    return tensors


def _parameter_names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _ordered_names(names: dict[int, str], optimizer: Optimizer) -> list[str]:
    groups = optimizer.param_groups
    return [names[id(parameter)] for group in groups for parameter in group["params"]]


def _flush(folder: Path) -> None:
    """Bring a folder's files to the disk, so that the marker never arrives before them."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
