"""Words for the mistakes in a configuration: file, key path, what is wrong, the nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

RENAMED: dict[tuple[str, ...], str] = {
    ("service", "max_batch"): "is now `frames_at_once` (pictures a call of an engine: `engines.max_batch`)",
}


def describe_errors(path: Path, error: ValidationError, root: type[BaseModel]) -> str:
    """One line a mistake. Values are never repeated, since a value may be a URL with a password."""
    lines = [f"{path}: {_key_path(item['loc'])}: {_words(item, root)}" for item in error.errors()]
    return "\n".join(dict.fromkeys(lines))


def _key_path(location: Sequence[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "the file"


def _words(item: Any, root: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        return _unknown_key(item["loc"], root)
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "missing":
        return "missing; it has no default"
    if item["type"] in ("model_type", "model_attributes_type"):
        return "must be a section of keys"
    return message[:1].lower() + message[1:]


def _unknown_key(location: Sequence[int | str], root: type[BaseModel]) -> str:
    if words := RENAMED.get(tuple(str(part) for part in location[-2:])):
        return words
    section = _section_at(location[:-1], root)
    known = list(section.model_fields) if section else []
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    if near:
        return f"unknown key; did you mean `{near[0]}`?"
    return f"unknown key; known here: {', '.join(known) or 'none'}"


def _section_at(location: Sequence[int | str], root: type[BaseModel]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = root
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part) if section else None
        section = _section_in(field.annotation) if field else None
    return section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_in(arg))), None)
