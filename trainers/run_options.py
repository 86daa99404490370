"""Which options a run was begun with: the same folder is not gone on with under others, and its card tells no lies."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.errors import MienError
from trainers.provenance import is_weights
from trainers.whole_file import whole_file

OPTIONS_FILE = "options.json"
# Options of `fit` that may change from call to call: how long, and by what machine.
FREE = frozenset(
    [
        "epochs",
        "until",
        "patience",
        "threads",
        "workers",
        "progress",
        "accelerator",
        "devices",
        "precision",
        "logger",
        "gpu_data",
    ]
)
NOT_TRAINING = ("run", "logging", "mirror", "start_note")  # where, told where, judged how and told how
CONTENT = "content of the data"


def claim(config: Any, content: Sequence[str] = ()) -> None:
    """Note the options of the run's folder. Raises MienError where it holds a run that was begun with others.

    `content` tells what is in the data, which must not change either: what was held out would be trained on.

    What has not come to the end of an epoch binds nobody. An option that the folder does not know is newer than its
    run, which went by the default.
    """
    run = Path(config.run)
    found = begun_with(run)
    mine = fixed_options(config) | {CONTENT: [*content] or found.get(CONTENT, [])}
    found = fixed_options(type(config)()) | {CONTENT: mine[CONTENT]} | beside(found, run) if found else mine
    if other := [name for name, value in mine.items() if found[name] != value]:
        raise MienError(f"{run}: was begun with another {', '.join(other)}; set another run=, or remove it")
    with whole_file(run / OPTIONS_FILE) as file:
        file.write((json.dumps(mine, indent=2) + "\n").encode())


def begun_with(run: Path) -> dict[str, object]:
    """The options of a run's folder; none where nothing was begun."""
    path = run / OPTIONS_FILE
    begun = path.is_file() and any(run.rglob("last.ckpt"))
    return json.loads(path.read_text(encoding="utf-8")) if begun else {}


def fixed_options(config: Any) -> dict[str, object]:
    """By their names on the command line; those that make the run another one."""
    named: dict[str, object] = {}
    for name, value in dataclasses.asdict(config).items():
        if name in NOT_TRAINING:
            continue
        parts = value if isinstance(value, dict) else {"": value}
        for part, each in parts.items():
            if name not in ("fit", "training") or part not in FREE:
                named[f"{name}.{part}".rstrip(".")] = each
    return beside(json.loads(json.dumps(named)), Path(config.run))


def beside(options: dict[str, object], run: Path) -> dict[str, object]:
    """Weights that lie in the folder around the run, as seen from the run: both may be moved together."""
    return {name: _beside(value, run) if is_weights(name) else value for name, value in options.items()}


def _beside(value: object, run: Path) -> object:
    around, weights = run.resolve().parent, Path(str(value)).resolve()
    inside = os.sep in str(value) and weights.is_relative_to(around)
    return f"../{weights.relative_to(around).as_posix()}" if inside else value
