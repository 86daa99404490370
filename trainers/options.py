"""key=value on the command line over a recipe's frozen options."""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml

from engines.errors import UsageError

T = TypeVar("T")


def override(options: T, settings: Sequence[str]) -> T:
    """A copy of a dataclass with `key=value` settings; `fit.epochs=3` reaches a nested one.

    Raises UsageError for an unknown key, naming the nearest, and for a value of the wrong type.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"{setting!r}: write it as key=value")
        options = _set(options, key.split("."), text, key)
    return options


def from_mapping(options: T, values: Mapping[str, Any], within: str = "") -> T:
    """A copy of a dataclass with the values of a nested mapping, checked as `override` checks."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            inner = from_mapping(getattr(options, name, None), value, f"{within}{name}.")
            options = dataclasses.replace(options, **{name: inner})  # type: ignore[type-var]
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            options = _set(options, [name], text, f"{within}{name}")
    return options


def _set(options: Any, path: list[str], text: str, key: str) -> Any:
    names = [f.name for f in dataclasses.fields(options)]
    if path[0] not in names:
        near = difflib.get_close_matches(path[0], names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
        raise UsageError(f"{key}: there is no such option; {hint}")
    old = getattr(options, path[0])
    if dataclasses.is_dataclass(old):
        if len(path) == 1:
            inner = ", ".join(f"{key}.{f.name}" for f in dataclasses.fields(old))
            raise UsageError(f"{key}: is a group; set one of {inner}")
        return dataclasses.replace(options, **{path[0]: _set(old, path[1:], text, key)})
    if len(path) > 1:
        raise UsageError(f"{key}: {path[0]} has no parts")
    return dataclasses.replace(options, **{path[0]: _typed(old, text, key)})


def _typed(old: Any, text: str, key: str) -> Any:
    if isinstance(old, str):
        return text
    if isinstance(old, tuple):
        return _numbers(old, text, key)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, float) and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a word
        try:
            value = float(value)
        except ValueError:
            raise UsageError(f"{key}: {text!r} is not a number") from None
    if type(value) is not type(old):
        raise UsageError(f"{key}: {text!r} is not of type {type(old).__name__}")
    return value


def _numbers(old: tuple[int, ...], text: str, key: str) -> tuple[int, ...]:
    """As many whole numbers as there were, as 0,1,1 or [0, 1, 1]."""
    parts = text.strip(" []").split(",")
    try:
        numbers = tuple(int(part) for part in parts)
    except ValueError:
        numbers = ()
    if len(numbers) != len(old) or min(numbers) < 0:
        example = ",".join(str(each) for each in old)
        raise UsageError(
            f"{key}: {text!r} is not {len(old)} whole numbers from 0 on; write them as {example}"
        )
    return numbers
