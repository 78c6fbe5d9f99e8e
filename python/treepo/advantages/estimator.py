"""Advantages of a whole forest."""

import difflib

import numpy as np
import numpy.typing as npt

from treepo.advantages.baseline import center, divide_by_group_std, whiten
from treepo.advantages.nodes import F64, num_sampled_tokens
from treepo.advantages.presets import PRESETS, Preset, Scale
from treepo.errors import InvalidConfigError, InvalidInputError
from treepo.forest import Forest


def advantages(
    forest: Forest,
    rewards: npt.NDArray[np.float32] | npt.NDArray[np.float64],
    preset: str | Preset = "treepo",
) -> F64:
    """Advantages of all trajectories of a forest, in time linear in its tokens.

    Args:
        forest: P trajectories. Presets that whiten do so over all of it.
        rewards: f32[P] or f64[P], in the order of `forest.paths`. A trajectory with NaN is left out
            of every group, and its advantage is 0.
        preset: A name in `PRESETS`, or a preset.

    Returns:
        f64[P]. Sources: see `treepo.advantages.presets`.

    Raises:
        InvalidInputError: There is not one reward a trajectory, or one is infinite.
        InvalidConfigError: There is no such preset.
    """
    chosen = preset if isinstance(preset, Preset) else find_preset(preset)
    scores = np.asarray(rewards, dtype=np.float64)
    if scores.shape != (forest.num_paths,):
        raise InvalidInputError(
            f"rewards have shape {scores.shape}, expected ({forest.num_paths},): "
            "one for each path of the forest"
        )
    if np.isinf(scores).any():
        raise InvalidInputError(
            f"reward of path {int(np.isinf(scores).argmax())} is infinite, "
            "use NaN for a path without a reward"
        )
    if forest.num_paths == 0:
        return scores
    centered = center(forest, scores, chosen.groups)
    if chosen.scale is Scale.GROUP_STD:
        return divide_by_group_std(forest, scores, centered)
    return whiten(centered, np.where(np.isnan(scores), 0, num_sampled_tokens(forest)))


def find_preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        InvalidConfigError: There is none; names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {close[0]}" if close else f"known: {', '.join(PRESETS)}"
    raise InvalidConfigError(f"unknown advantage preset {name!r}, {hint}")
