"""Where a model comes from: code, libraries, options, data, and the figures of its epoch; for its card."""

import dataclasses
import json
import os
import platform
import shlex
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engines.checkpoint import file_sha256
from trainers.callbacks import BEST_METRICS_FILE, METRICS_FILE
from trainers.ffhq_layout import open_ffhq
from trainers.precision import recorded_precision

UNION = ("emotion_masked", "ferplus", "expw", "ckplus")
UNLABELLED = ("mtfl", "utkface", "expw", "emotion_masked", "scenes")
# The sets that a recipe's training learns from, by its options; "" is the folder itself, in a layout of its own.
LEARNS_FROM: dict[str, Callable[[Any], tuple[str, ...]]] = {
    "detector": lambda c: ("scenes", *(("mtfl", "ffhq") if c.yunet else ())),
    "landmarks": lambda c: ("mtfl",),
    "recognition": lambda c: ("celeba_faces",) * c.labelled + (UNLABELLED if c.teacher else ()),
    # The last two calibrate, whatever is trained on.
    "attributes": lambda c: tuple(dict.fromkeys((*c.sets.split(","), "utkface", "ferplus"))),
    "ffhq": lambda c: ("ffhq",) + ("mtfl",) * c.mtfl,
    "expression": lambda c: (
        (UNION if c.data.kind == "zips" else ("",))
        + (("celeba_faces", "utkface") if c.model.pretrain_epochs else ())
    ),
    "closed_set": lambda c: ("",),
}
SETS = {
    "scenes": "public scenes; boxes by people (mask photos), SCRFD-2.5G and YuNet-n; every seventh scene is held out, "
    "and what nearly repeats one",
    "mtfl": "MTFL/MTCNN landmark set, landmarks and gender by people; its training part",
    "celeba_faces": "CelebA; the identities whose number ends in 7 are held out",
    "utkface": "UTKFace, age and gender, of which about 1 % are wrong; 80/10/10 by the hash of the file name",
    "ferplus": "FER2013 with the votes of FER+ on emotion",
    "emotion_masked": "AffectNet-derived masked faces; its emotions are noisy",
    "expw": "ExpW; its emotions are noisy",
    "ckplus": "CK+, posed emotions",
    "ffhq": "FFHQ, age, gender and emotion by a machine; 70/10/20 by the hash of the file name",
}
# Options that name what training began or learnt from.
OTHER_WEIGHTS = ("start", "teacher", "yunet", "learn_from")
LIBRARIES = ("mien", "torch", "lightning", "numpy", "opencv-python-headless")


def provenance(recipe: str, config: Any) -> str:
    """Lines of Markdown, with the names of folders but not where they are. Zips have the start of their SHA-256."""
    fit = config.fit
    precision = recorded_precision(fit.precision, Path(config.run))
    lines = [
        f"- code: {git_revision()}",
        f"- libraries: {', '.join(f'{name} {_version(name)}' for name in LIBRARIES if _version(name))}",
        f"- machine: {machine()}; seed {fit.seed}",
        f"- at most {fit.epochs} epochs of {fit.steps_per_epoch or 'all faces in'} batches of {fit.batch_size}, "
        f"learning rate {fit.learning_rate}, {precision}",
        f"- data: {', '.join(map(_fingerprint, sources(recipe, config)))}",
    ]
    for name, which in ((BEST_METRICS_FILE, "these weights'"), (METRICS_FILE, "last")):
        metrics = Path(config.run) / name
        if metrics.is_file():
            figures = json.loads(metrics.read_text(encoding="utf-8"))
            lines.append(
                f"- {which} epoch: {', '.join(f'{name} {value}' for name, value in figures.items())}"
            )
            break
    return "\n".join(lines)


def sources(recipe: str, config: Any) -> list[Path]:
    """The zips and folders that a training learns from, as far as they are there."""
    data = config.faces if recipe == "closed_set" else config.data
    folder = Path(getattr(data, "path", data))
    found = [_place(recipe, folder, name) for name in LEARNS_FROM[recipe](config)]
    if getattr(config, "wider", ""):
        found.append(Path(config.wider))
    return [path for path in found if path.exists()] or [folder]


def _place(recipe: str, folder: Path, name: str) -> Path:
    if name == "ffhq" and recipe != "detector":  # which pastes from the zip alone
        with open_ffhq(folder) as faces:
            return faces.images.path
    return folder / f"{name}.zip" if name else folder


def is_own(source: Path) -> bool:
    """Whether it is a user's own, of which nothing is known here."""
    return source.suffix != ".zip" or source.stem not in SETS


def described(source: Path) -> str:
    """A line of Markdown: what is in a zip or folder."""
    if is_own(source):
        return f"- your own data: {counted(source)}"
    return f"- {counted(source)}: {SETS[source.stem]}"


def counted(source: Path) -> str:
    """Its name, without where it is, and its number of files."""
    if source.suffix == ".zip":
        with zipfile.ZipFile(source) as file:
            return f"{source.name} ({len(file.namelist())} files)"
    return f"{source.resolve().name} ({sum(path.is_file() for path in source.rglob('*'))} files)"


def _fingerprint(source: Path) -> str:
    return zip_fingerprint(source) if source.suffix == ".zip" else counted(source)


def zip_fingerprint(source: Path) -> str:
    return f"{source.name} {file_sha256(source)[:12]}"


def other_weights(options: Sequence[str]) -> list[str]:
    """Those of the options that name weights."""
    named = [(option, *option.split("=", 1)) for option in options]
    return [option for option, name, value in named if is_weights(name) and shlex.split(value) != [""]]


def is_weights(option: str) -> bool:
    """Whether the option of this name names weights."""
    return option.rpartition(".")[2] in OTHER_WEIGHTS


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


def changed_options(config: Any, default: Any = None) -> list[str]:
    """key=value of the options that are not as they come, save how long and where it ran; files without folders.

    Weights that training began with are always told.
    """
    default = type(config)() if default is None else default
    found = []
    for each in dataclasses.fields(config):
        value, usual = getattr(config, each.name), getattr(default, each.name)
        # A torchvision backbone does not begin with the default weights, which are of another network.
        told = each.name in OTHER_WEIGHTS and value and not getattr(config, "backbone", "")
        if each.name in ("fit", "training", "logging", "run", "path") or (value == usual and not told):
            continue
        if dataclasses.is_dataclass(value):
            found += [f"{each.name}.{inner}" for inner in changed_options(value, usual)]
        elif each.name != "data":
            found.append(f"{each.name}={_written(value)}")
    return found


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return shlex.quote(Path(value).name) if isinstance(value, str) else str(value)
