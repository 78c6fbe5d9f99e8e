"""Dotted overrides from a command line: `search.width=16`, `--search.width 16`."""

import enum
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, Union

from treepo.config.schema import convert, field_types, is_section, join, unknown_key
from treepo.errors import InvalidConfigError

_NOTHING = ("none", "null", "")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def nested(cls: type, overrides: Sequence[str]) -> dict[str, Any]:
    """Turn dotted overrides into nested dictionaries of typed values.

    Args:
        cls: Config dataclass at the top.
        overrides: `a.b=v`, `--a.b=v`, or `--a.b` followed by `v`.

    Returns:
        Nested dictionaries for `from_dict`; a later override wins.

    Raises:
        InvalidConfigError: Malformed text, unknown key or value of the wrong type.
    """
    out: dict[str, Any] = {}
    for key, text in _pairs(cls, overrides):
        key, annotation = _full_key(cls, key)
        value = parse(text, annotation, key)
        *sections, name = key.split(".")
        level = out
        for section in sections:
            level = level.setdefault(section, {})
        level[name] = value
    return out


def parse(text: str, annotation: Any, path: str) -> Any:
    """Read the text of one value as a field's type says.

    Raises:
        InvalidConfigError: The text does not read as that type.
    """
    if typing.get_origin(annotation) in (Union, types.UnionType):
        options = [option for option in typing.get_args(annotation) if option is not type(None)]
        optional = len(options) < len(typing.get_args(annotation))
        return None if optional and text.lower() in _NOTHING else parse(text, options[0], path)
    if typing.get_origin(annotation) is tuple:
        kinds = typing.get_args(annotation)
        if kinds[-1] is Ellipsis:
            return convert(_list(text, path), annotation, path)
        items = [item for item in text.strip("[]() ").replace(",", " ").split() if item]
        if len(items) != len(kinds):
            raise InvalidConfigError(f"{path} must be {len(kinds)} values, got '{text}'")
        return [parse(item, kind, path) for item, kind in zip(items, kinds, strict=True)]
    if annotation is bool:
        return convert(_TRUTH.get(text.lower(), text), bool, path)
    if annotation is int:
        return convert(_integer(text), int, path)
    is_enum = isinstance(annotation, type) and issubclass(annotation, enum.Enum)
    return convert(text.lower() if is_enum else text, annotation, path)


def _list(text: str, path: str) -> Any:
    """Read a JSON list, or a text as the only item."""
    if text.lower() in _NOTHING:
        return []
    if not text.startswith("["):
        return [text]
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidConfigError(f"{path} is no JSON list ({error.msg}), got '{text}'") from None


def _integer(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _pairs(cls: type, overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    rest = iter(overrides)
    for word in rest:
        word_key, equals, text = word.partition("=")
        key = word_key.removeprefix("--").replace("-", "_")
        if not equals:
            if not word.startswith("--"):
                raise InvalidConfigError(f"expected key=value, got '{word}'")
            _full_key(cls, key)
            following = next(rest, None)
            if following is None:
                raise InvalidConfigError(f"option '{word}' needs a value")
            text = following
        pairs.append((key, text))
    return pairs


def _full_key(cls: type, key: str) -> tuple[str, Any]:
    """Return a key, that of a section's short form written out, and the type of its value."""
    path, current = "", cls
    names = key.split(".")
    for index, name in enumerate(names):
        known = field_types(current)
        if name not in known:
            raise unknown_key(name, known, path)
        annotation = known[name]
        path = join(path, name)
        last = index == len(names) - 1
        if last and is_section(annotation) and annotation.SHORT is not None:
            return _full_key(cls, join(key, annotation.SHORT))
        if last and is_section(annotation):
            first = next(iter(field_types(annotation)))
            raise InvalidConfigError(f"'{path}' is a section; set its keys, like {path}.{first}")
        if not last and not is_section(annotation):
            raise InvalidConfigError(f"'{path}' is a value, not a section; '{key}' does not exist")
        current = annotation
    return key, current
