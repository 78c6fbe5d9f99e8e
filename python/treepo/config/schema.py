"""What every config section can do: checked construction, dictionaries, nearest-name errors."""

import dataclasses
import difflib
import enum
import keyword
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self, TypeVar, Union

from treepo.errors import InvalidConfigError

S = TypeVar("S", bound="Section")

MAX_COUNT = 2**31 - 1
"""Largest number of things: positions and lengths are 32-bit."""
MAX_SEED = 2**64 - 1
"""Largest seed: random streams are keyed with 64 bits."""


class Section:
    """Base of the frozen config dataclasses.

    Construction checks the type of every field (an enum also by its value, a list where a tuple
    is meant, an integer where a float is meant) and then calls `_check`. Every message begins
    with the name of the field, so that a parent section can put its own name in front.

    A key that is a word of Python's (`from`) belongs to the field with an underscore behind it.
    """

    __slots__ = ()

    SHORT: ClassVar[str | None] = None
    """The key that a text in place of the section sets; None: a text is refused."""

    def __post_init__(self) -> None:
        """Check and normalise every field.

        Raises:
            InvalidConfigError: A field has the wrong type or a value out of range.
        """
        given = completed(type(self), self.fields(), {})
        for key, annotation in field_types(type(self)).items():
            value = convert(given[attribute(key)], annotation, key)
            object.__setattr__(self, attribute(key), value)
        self._check()

    def _check(self) -> None:
        """Check values, field against field; types are already right."""

    @classmethod
    def _base(cls, data: Mapping[str, Any], base: Self | None) -> Self | None:  # noqa: ARG003
        """Return what keys that are missing in `data` keep: `base`, unless `data` names another."""
        return base

    @classmethod
    def _starts_anew(cls, data: Mapping[str, Any]) -> bool:  # noqa: ARG003
        """Whether keys of a layer replace all that the layers below it say of the section."""
        return False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, base: Self | None = None) -> Self:
        """Build the section from nested dictionaries, the way a YAML file gives them.

        Args:
            data: Key to value, sections as nested mappings. Missing keys keep the base.
            base: Where missing keys come from; the defaults when absent.

        Returns:
            The checked section.

        Raises:
            InvalidConfigError: Unknown key (the nearest known one is named) or bad value.
        """
        return build(cls, data, base, "")

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dictionaries; `from_dict` gives back an equal section."""
        return {key: plain(getattr(self, attribute(key))) for key in field_types(type(self))}

    def fields(self) -> dict[str, Any]:
        """Return the values by field name, sections as they are."""
        names = map(attribute, field_types(type(self)))
        return {name: getattr(self, name) for name in names}

    def replace(self, **changes: Any) -> Self:
        """Return a checked copy with some fields changed; a mapping changes keys of a section."""
        known = field_types(type(self))
        names = set(map(attribute, known))
        for name in changes:
            if name not in names:
                raise unknown_key(name, known, "")
        base = (self._base(changes, self) or self).fields()
        return type(self)(**{**base, **completed(type(self), changes, base)})


def field_types(cls: type) -> dict[str, Any]:
    """Return key to type of a config dataclass, in order."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return {name.removesuffix("_"): hints[name] for name in names}


def attribute(key: str) -> str:
    """Return the name of the field that holds a key."""
    return f"{key}_" if keyword.iskeyword(key) else key


def completed(
    cls: type[Section], given: Mapping[str, Any], base: Mapping[str, Any]
) -> dict[str, Any]:
    """Return values by field name, a section that is given by some of its keys made whole.

    Args:
        cls: The section that has the fields.
        given: Field name to value, or to a mapping of keys, or to a section's short form.
        base: Where a section's other keys come from; the field's default where it is missing.
    """
    found = dict(given)
    for key, annotation in field_types(cls).items():
        name = attribute(key)
        if name in found and is_section(annotation) and not isinstance(found[name], Section):
            start = base[name] if name in base else default(cls, name)
            found[name] = build(annotation, found[name], start, key)
    return found


def default(cls: type[Section], name: str) -> Any:
    """Return what a field holds when nothing is given, None if it must be given."""
    field = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def build(cls: type[S], data: Any, base: S | None, path: str) -> S:
    """Build one config dataclass from a mapping; `path` is its dotted name, "" at the top."""
    data = _keyed(cls, data)
    if not isinstance(data, Mapping):
        where = path or "the config"
        raise InvalidConfigError(f"{where}: expected a mapping of keys, got {data!r}")
    known = field_types(cls)
    for key in data:
        if key not in known:
            raise unknown_key(str(key), known, path)
    with _below(path):
        base = cls._base(data, base)
    values = {} if base is None else base.fields()
    for key, value in data.items():
        annotation, name = known[key], attribute(key)
        if is_section(annotation) and not isinstance(value, Section):
            start = values[name] if name in values else default(cls, name)
            values[name] = build(annotation, value, start, join(path, key))
        else:
            values[name] = convert(value, annotation, join(path, key))
    with _below(path):
        return cls(**values)


def layered(cls: type[Section], low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries with the keys of two layers, the higher one winning.

    Values are checked against each other when a section is built of both, not of one alone.

    Args:
        cls: The section that both are of.
        low: Nested dictionaries for `from_dict`; what is wrong with them is found there.
        high: Likewise.
    """
    if cls._starts_anew(high):
        return dict(high)
    known, found = field_types(cls), dict(low)
    for key, value in high.items():
        kind: Any = known.get(key)
        if not is_section(kind) or key not in low:
            found[key] = value
            continue
        below, above_it = (_keyed(kind, layer) for layer in (low[key], value))
        if isinstance(below, Mapping) and isinstance(above_it, Mapping):
            found[key] = layered(kind, below, above_it)
        elif isinstance(below, Mapping):
            found[key] = value
        # Else what the lower layer says is no section, which building one finds.
    return found


def _keyed(cls: type[Section], data: Any) -> Any:
    """Return a section, or its short form, written out."""
    if isinstance(data, Section):
        return data.to_dict()
    return {cls.SHORT: data} if isinstance(data, str) and cls.SHORT is not None else data


@contextmanager
def _below(path: str) -> Iterator[None]:
    """Put the name of a section in front of the messages of its errors."""
    try:
        yield
    except InvalidConfigError as error:
        raise InvalidConfigError(join(path, str(error))) from None


def convert(value: Any, annotation: Any, path: str) -> Any:
    """Check `value` against a field's type and return it in that type.

    Raises:
        InvalidConfigError: The value does not fit; the message begins with `path`.
    """
    if typing.get_origin(annotation) in (Union, types.UnionType):
        options = typing.get_args(annotation)
        if value is None and type(None) in options:
            return None
        return convert(value, next(option for option in options if option is not type(None)), path)
    if typing.get_origin(annotation) is tuple:
        return _tuple(value, typing.get_args(annotation), path)
    if issubclass(annotation, enum.Enum):
        return _enum(value, annotation, path)
    if is_section(annotation):
        return value if isinstance(value, annotation) else build(annotation, value, None, path)
    return _scalar(value, annotation, path)


def _scalar(value: Any, annotation: type, path: str) -> Any:
    if annotation is float:
        return _float(value, path)
    if annotation is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise InvalidConfigError(f"{path} must be a whole number, got {value!r}")
    if annotation is bool and not isinstance(value, bool):
        raise InvalidConfigError(f"{path} must be true or false, got {value!r}")
    if annotation is str and not isinstance(value, str):
        raise InvalidConfigError(f"{path} must be a text, got {value!r}")
    return value


def _float(value: Any, path: str) -> float:
    # YAML 1.1 reads 1e-6 as a text, which nobody means.
    usable = isinstance(value, int | float | str) and not isinstance(value, bool)
    try:
        number = float(value) if usable else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidConfigError(f"{path} must be a finite number, got {value!r}")
    return number


def _enum(value: Any, annotation: type[enum.Enum], path: str) -> enum.Enum:
    if isinstance(value, bool):
        # YAML 1.1 reads on and off as truth values, which nobody means.
        value = "on" if value else "off"
    try:
        return annotation(value)
    except ValueError:
        choices = ", ".join(str(member.value) for member in annotation)
        raise InvalidConfigError(f"{path} must be one of {choices}; got {value!r}") from None


def _tuple(value: Any, items: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    if len(items) == 2 and items[1] is Ellipsis:
        if isinstance(value, str) and items[0] is str:
            value = [value]  # One text is a list of one, as on the command line.
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise InvalidConfigError(f"{path} must be a list, got {value!r}")
        items = (items[0],) * len(value)
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != len(items):
        raise InvalidConfigError(f"{path} must be {len(items)} values, got {value!r}")
    pairs = enumerate(zip(value, items, strict=True))
    return tuple(convert(item, kind, f"{path}[{index}]") for index, (item, kind) in pairs)


def plain(value: Any) -> Any:
    """Return a config value as YAML and JSON know it."""
    if isinstance(value, Section):
        return value.to_dict()
    if isinstance(value, enum.Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def is_section(annotation: Any) -> bool:
    """Whether a field's type is a config dataclass."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def unknown_key(key: str, known: Mapping[str, Any], path: str) -> InvalidConfigError:
    """Return the error for a key that no field has; it names the nearest known keys."""
    below = [name for name, kind in known.items() if is_section(kind) and key in field_types(kind)]
    if below:
        hint = " or ".join(f"'{join(path, join(name, key))}'" for name in below)
        return InvalidConfigError(f"unknown config key '{join(path, key)}'; did you mean {hint}")
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"did you mean '{join(path, near[0])}'" if near else f"known keys: {', '.join(known)}"
    where = f"section '{path}'" if path else "the top level"
    return InvalidConfigError(f"unknown config key '{join(path, key)}' at {where}; {hint}")


def join(path: str, key: str) -> str:
    """Return the dotted name of `key` below `path`."""
    return f"{path}.{key}" if path else key


def at_least(name: str, value: float | None, minimum: float) -> None:
    """Raise InvalidConfigError when a value that is set lies below its minimum."""
    if value is not None and value < minimum:
        raise InvalidConfigError(f"{name} must be at least {minimum}, got {value}")


def above(name: str, value: float | None, bound: float) -> None:
    """Raise InvalidConfigError when a value that is set is not above the bound."""
    if value is not None and value <= bound:
        raise InvalidConfigError(f"{name} must be above {bound}, got {value}")


def at_most(name: str, value: float | None, maximum: float) -> None:
    """Raise InvalidConfigError when a value that is set lies above its maximum."""
    if value is not None and value > maximum:
        raise InvalidConfigError(f"{name} must be at most {maximum}, got {value}")


def check_counts(section: Section, minimum: Mapping[str, int] = types.MappingProxyType({})) -> None:
    """Raise InvalidConfigError when a whole number of a section is out of range.

    Args:
        section: Every field that holds a whole number is checked.
        minimum: The least value by field name; 1 for a field that is not named.
    """
    for name, value in section.fields().items():
        if isinstance(value, int) and not isinstance(value, bool):
            at_least(name, value, minimum.get(name, 1))
            at_most(name, value, MAX_COUNT)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries, such as `Section.to_dict` makes, as one of dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        below = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": value}
    return found
