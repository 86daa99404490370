"""From a recipe's name to a checkpoint: options, training, default threshold, spec and card."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from engines.checkpoint import CARD_FILE, save_checkpoint
from engines.errors import MienError, UsageError
from engines.expression import expression_spec
from engines.spec import EMOTIONS, ModelSpec
from trainers import attributes, detector, expression, expression_data, ffhq, landmarks, recognition
from trainers.fit import check_machine
from trainers.options import override
from trainers.provenance import (
    changed_options,
    counted,
    described,
    is_own,
    other_weights,
    provenance,
    sources,
    zip_fingerprint,
)
from trainers.run_options import claim

FIGURES_START, FIGURES_END = "<!-- figures -->", "<!-- /figures -->"
MODEL_OF = {
    "detector": "detector",
    "landmarks": "landmarks",
    "recognition": "embedder",
    "attributes": "attributes",
    "ffhq": "attributes",
    "expression": "expression",
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "detector": detector.DetectorConfig,
    "landmarks": landmarks.LandmarksConfig,
    "recognition": recognition.RecognitionConfig,
    "attributes": attributes.AttributesConfig,
    "ffhq": ffhq.FfhqConfig,
    "expression": expression.ExpressionConfig,
}
TRAIN: dict[str, Callable[[Any], nn.Module]] = {
    "detector": detector.train,
    "landmarks": landmarks.train,
    "recognition": recognition.train,
    "attributes": attributes.train,
    "ffhq": ffhq.train,
    "expression": expression.train,
}
ABOUT = {
    "detector": "Finds faces: anchor-free, strides 8, 16 and 32, residual backbone (FCOS; generalised focal loss; "
    "GIoU).",
    "landmarks": "Finds two eyes, the nose and two mouth corners: stacked hourglass (Newell et al. 2016).",
    "recognition": "Turns an aligned face into numbers whose cosine tells whether two faces are one person. "
    "With a teacher it learns from that on all faces; the labelled ones that the teacher takes for LFW people are left "
    "out.",
    "attributes": "Reads age, gender (as annotated: female or male) and eight emotions from an aligned face. The "
    "emotion and gender probabilities are calibrated by a temperature each, fitted on FER+ PublicTest and UTKFace's "
    "validation part and folded into the last layers.",
    "ffhq": "Reads age, gender and eight emotions from a face, as the machine that labelled FFHQ did: its figures are "
    "agreement with that machine, not accuracy.",
    "expression": "Tells five expressions (Angry, Fear, Happy, Sad, Surprised) from an aligned face. The pictures are "
    "split 64/16/20 by set and class. Of the public sets, FER's near-duplicates and CK+'s subjects stay on one side, "
    "and of FER's pictures those count whose label enough of FER+'s voters confirmed (`data.min_votes`).",
}
UNTOLD = ("data", "run", "plots")  # options that do not change what is measured
PUBLIC_LICENCE = (
    "The public data are for research and non-commercial use; so are these weights. For a commercial purpose, train on "
    "data of your own."
)
OWN_LICENCE = "Your own data: {}; whether and for what its licence allows use is yours to know."
OTHER_LICENCE = "Training began or learnt from other weights ({}); their terms hold for these, too."
CODE_LICENCE = "The code is Apache-2.0."
NOT_RECORDED = "Not recorded."


def make_config(recipe: str, settings: Sequence[str], logger: str = "csv") -> Any:
    if recipe == "expression":
        from trainers.composition import expression_config

        return expression_config(settings, logger)
    return override(CONFIGS[recipe](), [f"fit.logger={logger}", *settings])


def train_recipe(recipe: str, settings: Sequence[str], logger: str = "csv") -> Path:
    """Train, choose the default threshold, and write RUN/MODEL as a checkpoint; returns its folder."""
    config = make_config(recipe, settings, logger)
    if recipe != "ffhq" and not config.fit.steps_per_epoch:
        raise UsageError("fit.steps_per_epoch=0: must be 1 or more; ffhq alone counts its own")
    if recipe != "expression" and config.fit.patience:
        raise UsageError("fit.patience: there is no validation loss to wait for; expression alone has one")
    check_machine(config.fit)
    claim(config, content_of(recipe, config))
    network = TRAIN[recipe](config)
    return finish(recipe, config, network)


def content_of(recipe: str, config: Any) -> list[str]:
    """The zips or class folders that a training reads, with the start of a checksum; none where they are not there."""
    with contextlib.suppress(MienError):  # it is told where they are read
        zips = [zip_fingerprint(each) for each in sources(recipe, config) if each.suffix == ".zip"]
        if recipe == "expression" and config.data.kind == expression_data.FOLDERS:
            return [expression_data.folders_content(Path(config.data.path)), *zips]
        return zips
    return []


def finish(recipe: str, config: Any, network: nn.Module) -> Path:
    """Write the checkpoint of a trained network; a default threshold is chosen on data that training may see."""
    folder = Path(config.run) / MODEL_OF[recipe]
    spec = spec_of(recipe, config)
    if recipe == "attributes":
        from trainers.calibration import calibrate, save_temperatures

        temperatures = calibrate(network, spec, config)
    card = card_text(recipe, config)
    save_checkpoint(folder, network, spec, card)
    if recipe == "attributes":
        save_temperatures(folder, temperatures)
    if recipe in ("detector", "recognition"):
        from trainers.evaluation import choose_threshold

        threshold = choose_threshold(recipe, config, folder.parent)
        save_checkpoint(folder, network, dataclasses.replace(spec, threshold=threshold), card)
    return folder


def spec_of(recipe: str, config: Any) -> ModelSpec:
    if recipe == "detector":
        args = {name: getattr(config, name) for name in ("width", "neck", "blocks", "towers")}
        return ModelSpec(
            "detector", "detector", "Detector", args, (640, 384), ("scores", "sides"), threshold=0.5
        )
    if recipe == "landmarks":
        return landmarks.landmarks_spec(config)
    if recipe == "recognition":
        return recognition.embedder_spec(config)
    if recipe == "ffhq":
        return ffhq.ffhq_spec(config)
    if recipe == "expression":
        return expression_spec(config.model.kind, config.model.dropout, config.model.enlarged)
    outputs = ("age_years", "female", "emotion")
    args, size = {"age_bins": config.age_bins, "input_size": config.input_size}, (config.input_size,) * 2
    return ModelSpec("attributes", "attributes", "AttributesNet", args, size, outputs, labels=EMOTIONS)


def card_text(recipe: str, config: Any = None) -> str:
    """What the network does, and what it was made from; the latter is not recorded without the run's options."""
    data = licence = made = NOT_RECORDED
    if config is not None:
        read, options = sources(recipe, config), changed_options(config)
        data = "\n".join(described(source) for source in read)
        licence = licence_text(read, other_weights(options))
        made = (
            f"`{' '.join(['mien train', recipe, 'data=FOLDER', *options])}`\n\n{provenance(recipe, config)}"
        )
    return (
        f"# {MODEL_OF[recipe]}\n\n{ABOUT[recipe]}\n\n## Data\n\n{data}\n\n## Licence\n\n{licence}\n\n"
        f"## Figures\n\n{FIGURES_START}\nNot measured yet: `mien evaluate {recipe}`.\n{FIGURES_END}\n\n"
        f"## Made by\n\n{made}\n"
    )


def licence_text(read: Sequence[Path], weights: Sequence[str]) -> str:
    """Of what was read, of the weights that training began or learnt from (as options), and of the code."""
    own = [counted(source) for source in read if is_own(source)]
    parts = [PUBLIC_LICENCE] if len(own) < len(read) else []
    parts += [OWN_LICENCE.format(", ".join(own))] if own else []
    parts += [OTHER_LICENCE.format(", ".join(weights))] if weights else []
    return " ".join([*parts, CODE_LICENCE])


def put_into_card(
    checkpoint: Path, recipe: str, figures: Mapping[str, object], settings: Sequence[str] = ()
) -> None:
    """Replace the card's figures, with the command that measures them: `settings` are its key=value."""
    path = checkpoint / CARD_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else card_text(recipe)
    head, _, rest = text.partition(FIGURES_START)
    _, _, tail = rest.partition(FIGURES_END)
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    command = " ".join(["mien evaluate", recipe, "data=FOLDER", *map(without_place, told(settings))])
    table = f"Measured by `{command}`:\n\n| figure | value |\n|---|---|\n{rows}\n"
    path.write_text(f"{head}{FIGURES_START}\n{table}{FIGURES_END}{tail}", encoding="utf-8")


def check_card(recipe: str, checkpoint: Path, settings: Sequence[str]) -> None:
    """Raises UsageError where other weights would be measured than those of the checkpoint whose card is written."""
    from trainers.measuring import EvaluationConfig, checkpoint_of, holder_of

    weights = override(EvaluationConfig(), settings).weights
    holder = EvaluationConfig(weights=holder_of(weights, MODEL_OF[recipe]) if weights else "")
    measured = checkpoint_of(holder, MODEL_OF[recipe])
    specs = [folder / "spec.json" for folder in (measured, checkpoint)]
    if len({ModelSpec.load(path).weights_sha256 for path in specs if path.is_file()}) > 1:
        raise UsageError(
            f"--write-card {checkpoint}: {measured} is what is measured; set weights={checkpoint}"
        )


def told(settings: Sequence[str]) -> list[str]:
    return [setting for setting in settings if setting.partition("=")[0] not in UNTOLD]


def without_place(setting: str) -> str:
    """key=value as it may be shown: folders are somebody's own, of a file the name stays."""
    key, _, value = setting.partition("=")
    path = Path(value)
    if path.is_dir():
        return f"{key}=FOLDER"
    return f"{key}={path.name}" if path.is_file() else setting
