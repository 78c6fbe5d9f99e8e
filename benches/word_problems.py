"""Arithmetic word problems as chat messages, all of them different."""

from __future__ import annotations

from typing import Any

NAMES = ("Tom", "Ana", "Raj", "Mei", "Ole", "Ida", "Sam", "Eva")
GOODS = (
    ("boxes", "apples"),
    ("bags", "marbles"),
    ("shelves", "books"),
    ("trays", "cookies"),
    ("crates", "bottles"),
)


def messages(count: int) -> list[list[dict[str, Any]]]:
    """The first `count` problems; problem i is the same for every count."""
    return [[{"role": "user", "content": _problem(index)}] for index in range(count)]


def _problem(index: int) -> str:
    name, (container, thing) = NAMES[index % len(NAMES)], GOODS[index % len(GOODS)]
    number, each, given = 3 + index % 7, 12 + index, 1 + index % 9
    return (
        f"{name} has {number} {container} with {each} {thing} each and gives {given} {thing} to a "
        f"friend. How many {thing} are left? Think step by step."
    )
