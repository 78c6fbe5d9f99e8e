"""The check that a model computes the same on the tree as on a single sequence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from treepo.config import Activations, Autocast, LossConfig, UpdateConfig
from treepo.engine.exact import ExactForward
from treepo.engine.hook import evaluating
from treepo.errors import InvalidInputError, UnsupportedModelError
from treepo.forest import Forest, TokenKind
from treepo.train.pack import pack
from treepo.train.step import TrainStep


def first_step_check(
    model: PreTrainedModel,
    forest: Forest,
    temperature: float,
    *,
    update: UpdateConfig | None = None,
    exact: ExactForward | None = None,
    tolerance: float | None = None,
) -> float:
    """Compares the log-probs of two leaves on the tree with a plain forward of their tokens.

    The leaves come from the tree with the most paths: its first path and, of the paths that are
    not packed right behind the token they fork from, the one that forks deepest. A model whose
    attention sees more or less than its ancestors fails here.

    Args:
        model: the causal LM.
        forest: a forest with sampled tokens.
        temperature: temperature of the log-probs, above 0.
        update: how the tree is attended over, and parts; the number format stays the model's own.
        exact: what the update's forward computes with instead of torch, if it does; both are
            checked then, as torch makes the gradient.
        tolerance: largest allowed difference in nats; absent: 1e-3 in float32 and float64, 0.25
            in shorter formats.

    Returns:
        The largest difference found, in nats.

    Raises:
        InvalidInputError: if the forest has no sampled token.
        UnsupportedModelError: if the difference is above the tolerance.
    """
    if tolerance is None:
        tolerance = 0.25 if model.dtype in (torch.float16, torch.bfloat16) else 1e-3
    own = replace(update or UpdateConfig(), autocast=Autocast.OFF, activations=Activations.KEEP)
    worst = 0.0
    for forward in (None,) if exact is None else (None, exact):
        step = TrainStep(model, LossConfig(), temperature, update=own, exact=forward)
        found = _largest_difference(step, model, forest)
        if not found <= tolerance:
            raise UnsupportedModelError(
                f"{type(model).__name__} gives log-probs on the tree that differ by {found:.3g} "
                f"from a plain forward, above {tolerance:g}: it cannot be trained on trees"
                + (" so; try engine.packing=never" if forward is not None else "")
            )
        worst = max(worst, found)
    return worst


def _largest_difference(step: TrainStep, model: PreTrainedModel, forest: Forest) -> float:
    """Largest distance between log-probs on the tree and of single sequences; NaN stays NaN."""
    tree_paths, leaves = _paths_to_compare(forest)
    packed = pack(forest, tree_paths)
    with evaluating(model):
        on_tree = torch.from_numpy(step.fixed_logprobs(packed))
    differences = []
    for leaf in leaves:
        tree = on_tree[torch.from_numpy(packed.src[packed.src_path == leaf])]
        predictor = pack(forest, [leaf]).predictor
        plain = step.plain_logprobs(forest.token_ids(leaf)).cpu()[torch.from_numpy(predictor)]
        differences.append((tree - plain).abs().max())
    return float(torch.stack(differences).max())


def _paths_to_compare(forest: Forest) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Paths of the tree with the most of them, and the two leaves to compare."""
    bounds = np.asarray(forest.trees.path_start)
    tree = int(np.diff(bounds).argmax())
    paths = np.arange(bounds[tree], bounds[tree + 1], dtype=np.int64)
    tokens = np.diff(np.asarray(forest.paths.token_start))[paths]
    prompt_len = int(np.asarray(forest.trees.prompt_len)[tree])
    own = np.where(np.arange(len(paths)) == 0, tokens - prompt_len, tokens)
    grown = paths[own > 0]
    if len(grown) == 0:
        raise InvalidInputError("no tree has a sampled token to check: sample completions first")
    apart = np.intersect1d(grown, _paths_apart(forest))
    forks = apart if len(apart) else grown
    deepest = forks[np.asarray(forest.paths.at)[forks].argmax()]
    return paths, sorted({int(grown[0]), int(deepest)})


def _paths_apart(forest: Forest) -> npt.NDArray[np.int32]:
    """Paths that begin with a sampled token which is not packed behind the one that predicts it."""
    nodes = forest.nodes()
    is_first = (nodes.parent >= 0) & (nodes.start == forest.paths.at[nodes.path])
    is_apart = nodes.parent != np.arange(len(nodes.parent)) - 1
    is_sampled = forest.tokens.kind[nodes.token_start] == TokenKind.SAMPLED
    apart: npt.NDArray[np.int32] = nodes.path[is_first & is_apart & is_sampled]
    return apart
