"""`mien average`: the mean of the weights of several checkpoints of one network, trained from the same start.

As good as the best of them or better, and no slower (Wortsman et al. 2022, "Model soups", sec. 3).
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from engines.checkpoint import CARD_FILE, load_checkpoint, save_checkpoint
from engines.errors import MienError, UsageError
from engines.spec import ModelSpec
from trainers.measuring import EvaluationConfig
from trainers.provenance import git_revision
from trainers.recipes import MODEL_OF, card_text

ALIKE = ("task", "network", "network_args", "input_size", "outputs", "labels", "mean", "std")
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)


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
        if different := [name for name in ALIKE if getattr(other, name) != getattr(spec, name)]:
            raise MienError(f"{folder}: has another {different[0]} than {checkpoints[0]}")
    network.load_state_dict(mean_of([other.state_dict() for other, _ in loaded]))
    thresholds = [other.threshold for _, other in loaded if other.threshold is not None]
    if thresholds:
        spec = dataclasses.replace(spec, threshold=round(sum(thresholds) / len(thresholds), 3))
    card = averaged_card(spec, checkpoints)
    spec = save_checkpoint(out, network, spec, card)
    if data and thresholds:
        threshold = chosen_threshold(out, spec, data)
        spec = save_checkpoint(out, network, dataclasses.replace(spec, threshold=threshold), card)
    return spec


def mean_of(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensor by tensor; whole numbers, which only count batches, are the first's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def chosen_threshold(folder: Path, spec: ModelSpec, data: str) -> float:
    """As a training chooses it. The checkpoint has to lie in a folder of the model's name, as a run leaves it."""
    from trainers.evaluation import choose_threshold

    if folder.name != spec.task:
        raise UsageError(f"{folder}: to choose its threshold on data, call the folder {spec.task}")
    return choose_threshold(recipe_of(spec), EvaluationConfig(data=data), folder.parent)


def recipe_of(spec: ModelSpec) -> str:
    return next(recipe for recipe, model in MODEL_OF.items() if model == spec.task)


def averaged_card(spec: ModelSpec, checkpoints: Sequence[Path]) -> str:
    """Of every checkpoint's card what it says of its data, its licence and its making; figures are to be measured."""
    cards = [sections((folder / CARD_FILE).read_text(encoding="utf-8")) for folder in checkpoints]
    text = card_text(recipe_of(spec))
    for name in ("Data", "Licence"):
        said = dict.fromkeys(card[name] for card in cards if name in card)
        text = with_section(text, name, "\n\n".join(said))
    names = [f"{folder.resolve().parent.name}/{folder.name}" for folder in checkpoints]
    made = [f"`mien average {' '.join(names)}`, code: {git_revision()}; the mean of:"]
    made += [
        f"### {name}\n\n{card.get('Made by', 'Not recorded.')}"
        for name, card in zip(names, cards, strict=True)
    ]
    return with_section(text, "Made by", "\n\n".join(made))


def sections(card: str) -> dict[str, str]:
    """What stands under each heading of a card."""
    parts = SECTION.split(card)
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def with_section(card: str, name: str, text: str) -> str:
    parts = SECTION.split(card)
    at = parts.index(name) + 1
    parts[at] = f"\n\n{text}\n" + ("\n" if at < len(parts) - 1 else "")
    return parts[0] + "".join(f"## {n}{t}" for n, t in zip(parts[1::2], parts[2::2], strict=True))
