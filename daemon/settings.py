"""The configuration with what the command line says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from daemon.config import CameraConfig, Config, load_config
from engines.errors import UsageError


def effective(path: Path | None, changes: Mapping[str, Mapping[str, Any]]) -> Config:
    """The configuration of a file, or the one that is found, with changes by section and key.

    None changes nothing; cameras are left out. Raises UsageError where the file or a change is wrong.
    """
    content = load_config(path).model_dump() | {"cameras": ()}
    for section, values in changes.items():
        content[section] = content[section] | {
            key: value for key, value in values.items() if value is not None
        }
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise UsageError(_in_words(error)) from None


def camera_template(**settings: Any) -> CameraConfig:
    """A camera without a source of its own; None leaves a default. Raises UsageError for a wrong setting."""
    chosen = {key: value for key, value in settings.items() if value is not None}
    try:
        return CameraConfig(name="template", source="none", **chosen)
    except ValidationError as error:
        raise UsageError(_in_words(error)) from None


def _in_words(error: ValidationError) -> str:
    """The first mistake: which option, what it was given, and what it takes."""
    first = error.errors()[0]
    name = next((str(part) for part in reversed(first["loc"]) if isinstance(part, str)), "option")
    message = first["msg"].removeprefix("Value error, ")
    return f"--{name.replace('_', '-')} {first['input']!r}: {message[:1].lower()}{message[1:]}"
