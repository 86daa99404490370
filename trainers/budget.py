"""`mien train all --budget 8m`: every recipe within one time, each its share; a second call goes on."""

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from engines.errors import MienError, UsageError
from trainers.recipes import CONFIGS, make_config, train_recipe
from trainers.run_loggers import check_logger
from trainers.run_options import begun_with
from trainers.whole_file import whole_file

# The detector and the embedder have the longest way to go; FER is learnt from the embedder's trunk.
SHARES = {"landmarks": 1.5, "detector": 3.0, "recognition": 3.0, "attributes": 2.0, "expression": 2.0}
STATE_FILE = "all.json"
START = {"attributes": "start", "expression": "model.start"}  # the option that names what they begin with
UNITS = {"s": 1, "m": 60, "h": 3600}
PICTURES_A_SECOND = 60  # read and aligned on one core, of all sets together: a bound on what is loaded
FOR_LOADING = 0.25  # of a recipe's share


@dataclass(slots=True)
class Spent:
    """What a recipe has had: seconds over all calls, its checkpoint once it is done, and what its data are cut to.

    The first call chooses the limit: with other data there may be more persons, and a head of another size.
    """

    seconds: float = 0.0
    checkpoint: str = ""
    limit: int = 0


def seconds_of(text: str) -> float:
    """`90s`, `8m`, `1h` or `1h30m`. Raises UsageError for anything else."""
    if not re.fullmatch(r"(\d+(\.\d+)?[smh])+", text):
        raise UsageError(f"--budget {text}: write it as 90s, 8m or 1h30m")
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([smh])", text))


def train_all(
    settings: Sequence[str], budget: str, tell: Callable[[str], object] = print, logger: str = "csv"
) -> dict[str, Path]:
    """Train every recipe that is not done yet, each in its share of the time; the checkpoints' folders.

    A recipe whose data are wrong or missing is told and left out. What is not reached waits for the next
    call. Settings of every recipe (`data=`, `limit=`, `fit.`) are passed on; `run=` is the folder of the runs.
    Raises UsageError for more than one device (each would count its own time) and for a logger that is not there.
    """
    fit = make_config("landmarks", [each for each in settings if each.startswith("fit.")], logger).fit
    if fit.devices > 1:
        raise UsageError(
            f"fit.devices={fit.devices}: `train all` trains on one device; train each recipe alone on more"
        )
    check_logger(fit.logger)
    deadline = time.time() + seconds_of(budget)
    run, passed = _run_folder(settings)
    spent = _load(run)
    waiting = [recipe for recipe in spent if not spent[recipe].checkpoint]
    while waiting:
        left = deadline - time.time()
        if left <= 0:
            tell(f"time is up before {', '.join(waiting)}; the same command goes on there")
            break
        share = left * _weight(waiting[0]) / sum(_weight(recipe) for recipe in waiting)
        recipe = waiting.pop(0)
        tell(f"{recipe}: {share:.0f} of {left:.0f} seconds left")
        try:
            _train(recipe, run, passed, share, spent, fit.logger)
        except MienError as error:
            tell(f"{recipe}: left out, {error}")
    return {name: Path(each.checkpoint) for name, each in spent.items() if each.checkpoint}


def _weight(recipe: str) -> float:
    return SHARES.get(recipe, 1.0)


def _train(
    recipe: str, run: Path, settings: list[str], share: float, spent: dict[str, Spent], logger: str
) -> None:
    started, before = time.monotonic(), spent[recipe].seconds
    limit = spent[recipe].limit or _limit(share)

    def note(checkpoint: str = "") -> None:
        spent[recipe] = Spent(round(before + time.monotonic() - started, 1), checkpoint, limit)
        _save(run, spent)

    note()  # a kill leaves no time to
    own = [f"run={run / recipe}", f"fit.until={time.time() + share * 0.9}", "fit.steps_per_epoch=50"]
    try:
        checkpoint = train_recipe(recipe, [*own, *_for_this_machine(recipe, limit, run), *settings], logger)
    except BaseException:
        note()
        raise
    note(str(checkpoint))


def _limit(share: float) -> int:
    """Images of a set that are read and aligned within FOR_LOADING of a share, in seconds."""
    return max(40, int(share * FOR_LOADING * PICTURES_A_SECOND * (os.cpu_count() or 1) / 5))


def _for_this_machine(recipe: str, limit: int, run: Path) -> list[str]:
    cores = os.cpu_count() or 1
    workers = min(12, cores - 2) if torch.cuda.is_available() and cores > 4 else 0
    more = [f"fit.workers={workers}", f"limit={limit}"]
    start, trunk = START.get(recipe), run / "recognition" / "embedder"
    begun = begun_with(run / recipe)
    if start and (begun.get(start) if begun else trunk.is_dir()):  # a run goes on as it began
        more.append(f"{start}={trunk}")
    return more


def _run_folder(settings: Sequence[str]) -> tuple[Path, list[str]]:
    runs = [setting.partition("=")[2] for setting in settings if setting.startswith("run=")]
    return Path(runs[-1] if runs else "runs"), [s for s in settings if not s.startswith("run=")]


def _load(run: Path) -> dict[str, Spent]:
    path = run / STATE_FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    order = [*SHARES, *(recipe for recipe in CONFIGS if recipe not in SHARES)]
    return {recipe: Spent(**known.get(recipe, {})) for recipe in order}


def _save(run: Path, spent: dict[str, Spent]) -> None:
    with whole_file(run / STATE_FILE) as file:
        file.write(json.dumps({name: asdict(each) for name, each in spent.items()}, indent=1).encode())
