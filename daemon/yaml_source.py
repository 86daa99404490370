"""Reading a YAML file whose mistakes are reported with the line they are on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from engines.errors import UsageError


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets a later key silently win over an equal earlier one; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _mistake(key, "a key is a list or a mapping; fill in what stands in {{ }}, or quote it")
            if key.value in seen:
                raise _mistake(key, f"the key {key.value!r} is there twice: remove one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):  # what PyYAML's own readings of a value fail with
            raise _mistake(node, "no such date or number; put it in quotes where it is text") from None


def _mistake(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file ({} where it is empty); raises UsageError naming file, line and mistake."""
    try:
        # The loader derives from SafeLoader, so it builds plain values only.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; name a config with --config") from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); check its path and permissions"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a UTF-8 text file; a config is YAML text") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}{_place(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds a {type(content).__name__}, not sections such as `cameras:`")
    return content


def _place(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ": not valid YAML"
    return f", line {error.problem_mark.line + 1}: {error.problem or 'not valid YAML'}"
