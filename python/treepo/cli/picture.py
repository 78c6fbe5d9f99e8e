"""One tree as indented text: a line a node, shared tokens once."""

import shutil
from typing import Any

import numpy as np

from treepo.forest import FinishReason, Forest

_MIN_TEXT = 20


def picture(forest: Forest, tree: int, tokenizer: Any, *, columns: int | None = None) -> str:
    """Draw a tree.

    Args:
        forest: A forest.
        tree: Index of the tree.
        tokenizer: Turns token ids into text.
        columns: Width of a line at most; absent: the terminal's.

    Returns:
        One line a node, indented by where it forks: its text, cut in the middle where it is too
        long, and at a leaf how it ended. A node with one child goes on in the same line.
    """
    width = shutil.get_terminal_size((100, 24)).columns if columns is None else columns
    nodes = forest.nodes()
    parent = nodes.parent
    num_children = np.bincount(parent[parent >= 0], minlength=len(parent))
    ends = {int(node): path for path, node in enumerate(nodes.leaf)}
    level: dict[int, int] = {}
    chains: list[list[int]] = []
    for node in np.flatnonzero(nodes.tree == tree).tolist():
        above = int(parent[node])
        if above < 0:
            level[node] = 0
            chains.append([node])
        elif parent[above] < 0 or num_children[above] > 1 or above in ends:
            level[node] = level[above] + 1
            chains.append([node])
        else:
            level[node] = level[above]
            chains[-1].append(node)
    return "\n".join(
        _line(forest, chain, level[chain[0]], ends.get(chain[-1]), tokenizer, width)
        for chain in chains
    )


def _line(
    forest: Forest, chain: list[int], level: int, path: int | None, tokenizer: Any, width: int
) -> str:
    nodes = forest.nodes()
    ids: list[int] = []
    for node in chain:
        first = int(nodes.token_start[node])
        length = int(nodes.end[node] - nodes.start[node])
        ids += forest.tokens.id[first : first + length].tolist()
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    head = "  " * level + ("" if level == 0 else "+- ")
    tail = f"  [{len(ids)} tokens{_ending(forest, path)}]"
    room = max(_MIN_TEXT, width - len(head) - len(tail))
    return head + _shorten(repr(text)[1:-1], room) + tail


def _ending(forest: Forest, path: int | None) -> str:
    if path is None:
        return ""
    reward = float(forest.paths.reward[path])
    ending = f", {FinishReason(int(forest.paths.finish[path])).name.lower()}"
    return ending if np.isnan(reward) else f"{ending}, reward {reward:g}"


def _shorten(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    kept = room - 5
    return f"{text[: kept - kept // 2]} ... {text[len(text) - kept // 2 :]}"
