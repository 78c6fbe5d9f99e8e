"""One tree as indented text: a line a node, shared tokens once."""

import shutil
import unicodedata
from typing import Any

import numpy as np

from treepo.cli.report import counted
from treepo.forest import FinishReason, Forest

_MIN_TEXT = 20
_CUT = " ... "


def picture(forest: Forest, tree: int, tokenizer: Any, *, columns: int | None = None) -> str:
    """Draw a tree.

    Args:
        forest: A forest.
        tree: Index of the tree.
        tokenizer: Turns token ids into text.
        columns: Width of a line at most; absent: the terminal's.

    Returns:
        One line a node, indented by where it forks: its text, cut in the middle where it is too
        long, and at a leaf how it ended, its reward, and its inclusion weight if it is not 1. A
        node with one child goes on in the same line.
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
    tail = f"  [{counted(len(ids), 'token')}{_ending(forest, path)}]"
    room = max(_MIN_TEXT, width - len(head) - len(tail))
    return head + _shorten(_printable(text), room) + tail


def _ending(forest: Forest, path: int | None) -> str:
    if path is None:
        return ""
    reward, weight = float(forest.paths.reward[path]), float(forest.paths.weight[path])
    ending = f", {FinishReason(int(forest.paths.finish[path])).name.lower()}"
    if not np.isnan(reward):
        ending += f", reward {reward:g}"
    return ending if weight == 1 else f"{ending}, weight {weight:.3g}"


def _printable(text: str) -> str:
    """Return a text on one line: line ends and the like as escapes, all else as it is."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _shorten(text: str, room: int) -> str:
    """Cut the middle out of a text that is wider than `room` columns."""
    if sum(map(_columns, text)) <= room:
        return text
    kept = room - len(_CUT)
    front = _fitting(text, kept - kept // 2)
    back = _fitting(text[::-1], kept // 2)
    return text[:front] + _CUT + text[len(text) - back :]


def _fitting(text: str, room: int) -> int:
    """Return how many characters of a text's front fill at most `room` columns."""
    for count, char in enumerate(text):
        room -= _columns(char)
        if room < 0:
            return count
    return len(text)


def _columns(char: str) -> int:
    """Return the columns that a terminal gives to a character."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
