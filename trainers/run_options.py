"""Which options a run was begun with: the same folder is not gone on with under others, and its card tells no lies."""

import dataclasses
import json
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
BESIDE = "weights beside the run"


def claim(config: Any, content: Sequence[str] = ()) -> None:
    """Note the options of the run's folder. Raises MienError where it holds a run that was begun with others.

    `content` tells what is in the data, which must not change either: what was held out would be trained on.

    What has not come to the end of an epoch binds nobody. An option that the folder does not know is newer than its
    run, which went by the default.
    """
    run = Path(config.run)
    found = begun_with(run)
    content = [*content] or found.get(CONTENT, [])
    mine = fixed_options(config) | {CONTENT: content, BESIDE: beside(config)}
    before = fixed_options(type(config)()) | {CONTENT: content, BESIDE: {}} | found if found else mine
    if other := [name for name in mine if name != BESIDE and not is_same(name, before, mine)]:
        raise MienError(f"{run}: was begun with another {', '.join(other)}; set another run=, or remove it")
    with whole_file(run / OPTIONS_FILE) as file:
        file.write((json.dumps(mine, indent=2) + "\n").encode())


def begun_with(run: Path) -> dict[str, Any]:
    """The options of a run's folder; none where nothing was begun."""
    path = run / OPTIONS_FILE
    if not path.is_file() or not any(run.rglob("last.ckpt")):
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if "fixed" not in found:
        return dict(found)
    fixed = found["fixed"]  # as the closed set had it until November 2026
    return fixed | {CONTENT: [fixed.pop("choice of images")]} if "choice of images" in fixed else fixed


def is_same(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether an option is the same; weights are wherever they are told of from, or moved to together with the run."""
    if before[name] == now[name]:
        return True
    if not (is_weights(name) and before[name] and now[name]):
        return False
    moved = before[BESIDE].get(name), now[BESIDE].get(name)
    return Path(before[name]).resolve() == Path(now[name]).resolve() or (moved[0] == moved[1] is not None)


def beside(config: Any) -> dict[str, str]:
    """Where weights lie that are in the folder around the run, as seen from there, by the option that names them."""
    around = Path(config.run).resolve().parent
    places = {k: Path(v).resolve() for k, v in fixed_options(config).items() if is_weights(k) and v}
    return {
        name: place.relative_to(around).as_posix()
        for name, place in places.items()
        if place.is_relative_to(around)
    }


def fixed_options(config: Any) -> dict[str, Any]:
    """By their names on the command line; those that make the run another one."""
    named: dict[str, object] = {}
    for name, value in dataclasses.asdict(config).items():
        if name in NOT_TRAINING:
            continue
        parts = value if isinstance(value, dict) else {"": value}
        for part, each in parts.items():
            if name not in ("fit", "training") or part not in FREE:
                named[f"{name}.{part}".rstrip(".")] = each
    fixed: dict[str, Any] = json.loads(json.dumps(named))
    return fixed
