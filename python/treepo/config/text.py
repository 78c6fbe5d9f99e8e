"""YAML in and out; the YAML package is imported on first use."""

from pathlib import Path
from typing import Any

from treepo.errors import InvalidConfigError


def load_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; an empty file is an empty mapping.

    Raises:
        InvalidConfigError: Unreadable file, invalid YAML, or not a mapping.
    """
    import yaml

    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfigError(f"cannot read config {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        reason = f"line {mark.line + 1}: {problem}" if mark and problem else str(error)
        raise InvalidConfigError(f"config {file} is not valid YAML: {reason}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InvalidConfigError(f"config {file} must hold a mapping of keys, got {data!r:.60}")
    return data


def dump_yaml(data: dict[str, Any]) -> str:
    """Return nested dictionaries as YAML, keys in their order."""
    import yaml

    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
