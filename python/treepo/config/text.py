"""YAML in and out; the YAML package is imported on first use."""

from pathlib import Path
from typing import Any

from treepo.errors import InvalidConfigError


def load_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; an empty file is an empty mapping.

    Raises:
        InvalidConfigError: Unreadable file, invalid YAML, a key that is there twice, not a mapping,
            or no YAML package.
    """
    yaml = _yaml()
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_strict_loader(yaml))
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
    return str(_yaml().safe_dump(data, sort_keys=False, allow_unicode=True))


def _yaml() -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise InvalidConfigError(
            "reading and writing YAML needs the package PyYAML: pip install pyyaml"
        ) from None
    return yaml


def _strict_loader(yaml: Any) -> Any:
    """Return a safe loader that refuses a key that is there twice; YAML's own keeps the last."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue  # No key of a config: refused by its name later, or by YAML.
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value}' is there twice", key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader
