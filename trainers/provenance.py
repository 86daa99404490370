"""Where a model comes from: its code, its libraries, its data and what the last epoch measured; for its card."""

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engines.checkpoint import file_sha256
from trainers.fit import METRICS_FILE
from trainers.zips import SEED

READ = {  # the zips that a recipe's training reads
    "detector": ("scenes", "mtfl", "ffhq"),
    "landmarks": ("mtfl",),
    "recognition": ("celeba_faces", "mtfl", "utkface", "expw", "emotion_masked", "scenes"),
    "attributes": ("utkface", "ferplus", "mtfl", "emotion_masked", "expw", "ffhq"),
    "ffhq": ("ffhq",),
    "expression": ("emotion_masked", "ferplus", "expw", "ckplus"),
}
LIBRARIES = ("mien", "torch", "lightning", "numpy", "opencv-python-headless")


def provenance(recipe: str, config: Any) -> str:
    """Lines of Markdown, without the names of folders. Zips are named with the start of their SHA-256."""
    folder, fit = getattr(config.data, "path", config.data), config.fit
    lines = [
        f"- code: {git_revision()}",
        f"- libraries: {', '.join(f'{name} {_version(name)}' for name in LIBRARIES if _version(name))}",
        f"- machine: {machine()}; seed {SEED}",
        f"- at most {fit.epochs} epochs of {fit.steps_per_epoch} batches of {fit.batch_size}, "
        f"learning rate {fit.learning_rate}, {fit.precision}",
        f"- data: {_data(Path(folder), _sets(recipe, config))}",
    ]
    if changed := _changed(config, type(config)()):
        lines.insert(-1, f"- options: {', '.join(changed)}")
    metrics = Path(config.run) / METRICS_FILE
    if metrics.is_file():
        figures = json.loads(metrics.read_text(encoding="utf-8"))
        lines.append(f"- last epoch: {', '.join(f'{name} {value}' for name, value in figures.items())}")
    return "\n".join(lines)


def git_revision() -> str:
    """The commit of this code, and whether it was changed since; unknown outside a checkout."""
    where = Path(__file__).parent
    try:
        commit = _git(where, "rev-parse", "--short=12", "HEAD")
        changed = _git(where, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "not from a git checkout"
    return f"git {commit}" + (" with uncommitted changes" if changed else "")


def _git(where: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def machine() -> str:
    """The GPU, or how many CPU cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def _sets(recipe: str, config: Any) -> list[str]:
    labelled = getattr(config, "labelled", True)
    beside = ["mtfl"] if getattr(config, "mtfl", False) else []
    return [name for name in READ.get(recipe, ()) if labelled or name != "celeba_faces"] + beside


def _changed(config: Any, default: Any) -> list[str]:
    """key=value of the options that are not as they come, save how long and where it ran; files without folders."""
    found = []
    for each in dataclasses.fields(config):
        value, usual = getattr(config, each.name), getattr(default, each.name)
        if each.name in ("fit", "training", "logging", "run", "path") or value == usual:
            continue
        if dataclasses.is_dataclass(value):
            found += [f"{each.name}.{inner}" for inner in _changed(value, usual)]
        elif each.name != "data":
            found.append(f"{each.name}={Path(value).name if isinstance(value, str) else value}")
    return found


def _data(folder: Path, names: Sequence[str]) -> str:
    zips = [folder / f"{name}.zip" for name in names]
    if any(path.is_file() for path in zips):
        return ", ".join(f"{path.name} {file_sha256(path)[:12]}" for path in zips if path.is_file())
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    counts = [f"{path.name} ({sum(1 for _ in path.rglob('*.*'))})" for path in inside[:20]]
    return "files of one's own" + (f" in the folders {', '.join(counts)}" if counts else "")
