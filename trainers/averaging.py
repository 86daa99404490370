"""`mien average`: the mean of the weights of several checkpoints of one network, trained from the same start.

Often as good as the best of them or better, and no slower (Wortsman et al. 2022, "Model soups", sec. 3).
"""

import dataclasses
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.checkpoint import CARD_FILE, load_checkpoint, save_checkpoint
from engines.errors import MienError, UsageError
from engines.spec import ModelSpec
from trainers.evaluation import choose_threshold
from trainers.measuring import EvaluationConfig
from trainers.provenance import git_revision
from trainers.recipes import FIGURES_END, FIGURES_START, NOT_RECORDED

ALIKE = (
    "task",
    "network",
    "input_size",
    "outputs",
    "labels",
    "mean",
    "std",
    "room",
    "aligned",
)
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
ABOUT = ""  # what stands before a card's first heading
CHOOSING = {"detector": "detector", "embedder": "recognition"}  # models with a threshold, and their recipes


def average(checkpoints: Sequence[Path], out: Path, data: str = "") -> ModelSpec:
    """Write the mean of the checkpoints to `out`; with `data` a detector's or embedder's threshold is chosen anew.

    Without, it is the mean of theirs. Raises UsageError for fewer than two and for an `out` that is one of them,
    MienError for one that cannot be read or is of another network.
    """
    if len(checkpoints) < 2:
        raise UsageError("average: name two checkpoints or more")
    if out.resolve() in [folder.resolve() for folder in checkpoints]:
        raise UsageError(f"{out}: is one of the checkpoints that are averaged; name another folder")
    loaded = [load_checkpoint(folder) for folder in checkpoints]
    network, spec = loaded[0]
    for folder, (_, other) in zip(checkpoints, loaded, strict=True):
        different = [name for name in ALIKE if getattr(other, name) != getattr(spec, name)]
        if different or all_args(network, other) != all_args(network, spec):
            raise MienError(f"{folder}: has another {(*different, 'network_args')[0]} than {checkpoints[0]}")
    if data and spec.task not in CHOOSING:
        raise UsageError(f"--data: {spec.task} has no threshold to be chosen; leave it out")
    if data and out.name != spec.task:
        raise UsageError(f"{out}: to choose its threshold on data, call the folder {spec.task}")
    network.load_state_dict(mean_of([other.state_dict() for other, _ in loaded]))
    thresholds = [other.threshold for _, other in loaded if other.threshold is not None]
    if thresholds:
        spec = dataclasses.replace(spec, threshold=round(sum(thresholds) / len(thresholds), 3))
    card = averaged_card(spec, checkpoints)
    spec = save_checkpoint(out, network, spec, card)
    if data:
        threshold = choose_threshold(CHOOSING[spec.task], EvaluationConfig(data=data), out.parent)
        spec = save_checkpoint(out, network, dataclasses.replace(spec, threshold=threshold), card)
    return spec


def all_args(network: nn.Module, spec: ModelSpec) -> str:
    """What the network is made with, told in the spec or by default, as JSON."""
    bound = inspect.signature(type(network)).bind(**spec.network_args)
    bound.apply_defaults()
    return json.dumps(bound.arguments)


def mean_of(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensor by tensor; whole numbers, which only count batches, are the first's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def averaged_card(spec: ModelSpec, checkpoints: Sequence[Path]) -> str:
    """Of every checkpoint's card what it says of its data, its licence and its making; figures are to be measured."""
    cards = [sections(folder / CARD_FILE) for folder in checkpoints]
    names = [f"{folder.resolve().parent.name}/{folder.name}" for folder in checkpoints]
    made = [f"`mien average {' '.join(names)}`, code: {git_revision()}; the mean of:"]
    made += [f"### {name}\n\n{card['Made by']}" for name, card in zip(names, cards, strict=True)]
    said = {name: [card[name] for card in cards] for name in ("Data", "Licence")} | {"Made by": made}
    data, licence, made_by = ("\n\n".join(dict.fromkeys(texts)) for texts in said.values())
    return (
        f"{cards[0][ABOUT] or f'# {spec.name}'}\n\n## Data\n\n{data}\n\n## Licence\n\n{licence}\n\n"
        f"## Figures\n\n{FIGURES_START}\nNot measured yet.\n{FIGURES_END}\n\n"
        f"## Made by\n\n{made_by}\n"
    )


def sections(path: Path) -> defaultdict[str, str]:
    """What stands under each heading of a card, and before the first; what is not there is not recorded."""
    parts = HEADING.split(path.read_text(encoding="utf-8") if path.is_file() else "")
    found = {ABOUT: parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))
    return defaultdict(lambda: NOT_RECORDED, {name: text.strip() for name, text in found.items()})
