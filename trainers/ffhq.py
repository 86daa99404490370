"""Recipe `ffhq`: a pretrained network fine-tuned on FFHQ's machine-made age, gender and emotion distribution.

Age by L1 in years (weight 1), gender by cross-entropy (10), emotion by the Kullback-Leibler divergence from the
labelled distribution (5); batches of 64, 30 epochs, a rate of 1e-4, pictures of 224 px. A run leaves

    RUN/best_model.safetensors      the best epoch's weights, by validation loss
    RUN/attributes/                 the same as a checkpoint, with metadata.json: epoch, figures, options
    RUN/epoch_005/, history_005.png every five epochs and at the end: a checkpoint, and the curves so far
"""

import dataclasses
import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engines.checkpoint import save_checkpoint
from engines.errors import UsageError
from engines.geometry import Image, attribute_crop, warp
from engines.networks import AttributesNet
from engines.spec import EMOTIONS, ModelSpec
from trainers import plots
from trainers.attribute_sets import LabelledFaces, mtfl, mtfl_rows
from trainers.attributes import check_input_size
from trainers.batched_changes import jitter_matrices, mirrored
from trainers.faces import FaceFinder, stored_box
from trainers.ffhq_layout import open_ffhq
from trainers.ffhq_networks import START, imagenet_input, make_network, room_of, untrained
from trainers.fit import FitOptions, RandomSamples, Recipe, fit, image_batch
from trainers.held import Draw
from trainers.label_checks import pictures
from trainers.transforms import jitter_matrix, photometric
from trainers.whole_file import whole_file
from trainers.zips import ImageZip

CROPS = ("attribute", "wide", "thumbnail")
METADATA_FILE, HISTORY_FILE, BEST_FILE = "metadata.json", "history.json", "best_model.safetensors"
OUTPUTS = ("age_years", "female", "emotion")
LABELS = ("age", "female", "emotion")
JITTER = (8.0, 0.06, 0.02)  # degrees, of the size, shift in sizes
STRENGTH = 0.6  # of changes of light, and of what degrades a picture


@dataclass(frozen=True, slots=True)
class FfhqConfig:
    data: str = "data"  # holds ffhq.zip, or thumbnails/ and json/, or an ffhq folder with them
    run: str = "runs/ffhq"
    start: str = START  # a checkpoint folder, a .pt or .ckpt file, imagenet; none: from scratch
    backbone: str = ""  # a torchvision classifier such as resnet18; none: our own trunk
    crop: str = "attribute"  # the daemon's crop; wide, with hair and neck around it; or the whole thumbnail
    input_size: int = 224
    age_bins: int = 0
    age_weight: float = 1.0
    gender_weight: float = 10.0
    emotion_weight: float = 5.0
    mtfl: bool = False  # as many of MTFL's faces (mtfl.zip) beside, for their gender, which people told
    picture_every: int = 5  # epochs; 0: at the end alone
    limit: int = 0  # images used of each part; 0 is all
    fit: FitOptions = field(
        default_factory=lambda: FitOptions(
            epochs=30, steps_per_epoch=0, batch_size=64, learning_rate=1e-4, ema_decay=0.0
        )
    )  # steps_per_epoch 0: as many as show every face once


def thumbnails(config: FfhqConfig, part: str) -> LabelledFaces:
    """A part's faces as crops (M, S, S, 3), with their machine-made labels."""
    with open_ffhq(config.data) as data:
        rows = data.faces(part)[: config.limit or None]
        finder = None if config.crop == "thumbnail" else FaceFinder()
        images = pictures(data.images, [row.image for row in rows])
        crops = np.stack([cropped(image, finder, config.input_size, room_of(config)) for image in images])
    age = np.array([row.age for row in rows], np.float32)
    female = np.array([row.female for row in rows], np.float32)
    emotion = np.stack([row.emotion for row in rows])
    return LabelledFaces(crops, age, female, emotion, tuple(row.image for row in rows))


def cropped(image: Image, finder: FaceFinder | None, size: int, room: int = 0) -> Image:
    """The attribute crop by our own landmarks and `room` around it, or the whole picture, at size x size."""
    if finder is None:
        import cv2

        return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    points, _ = finder.refine([image], stored_box("ffhq", image.shape[0])[None])
    return attribute_crop(image, points[0], size, room)


def mtfl_faces(config: FfhqConfig) -> LabelledFaces:
    """MTFL's faces, cropped as FFHQ's are, with their gender alone."""
    return mtfl(
        config, lambda image, points: attribute_crop(image, points, config.input_size, room_of(config))
    )


class FfhqSamples(RandomSamples):
    """Every face once an epoch, in an order of its own: image (S, S, 3), age, female, emotion (8,).

    With `others` every second one is one of theirs, drawn at random.
    """

    def __init__(self, faces: LabelledFaces, others: LabelledFaces | None = None) -> None:
        super().__init__(len(faces) * (1 if others is None else 2))
        self.faces, self.others = faces, others

    def __getitem__(self, index: int) -> tuple:
        at = self.first + index
        rng = np.random.default_rng((self.seed, 1, at))
        faces, i = self.chosen(rng, at)
        size = faces.crops.shape[1]
        crop = warp(faces.crops[i], jitter_matrix(rng, size, *JITTER), (size, size))
        crop = photometric(rng, crop[:, ::-1].copy() if rng.random() < 0.5 else crop, STRENGTH)
        return crop, faces.age[i], faces.female[i], faces.emotion[i]

    def chosen(self, rng: np.random.Generator, at: int) -> tuple[LabelledFaces, int]:
        """Whose turn it is at sample number `at`."""
        if self.others is not None:
            at, odd = divmod(at, 2)
            if odd:
                return self.others, int(rng.integers(len(self.others)))
        epoch, place = divmod(at, len(self.faces))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.faces))
        return self.faces, int(order[place])

    def pictures(self) -> list[np.ndarray]:
        return [faces.crops for faces in (self.faces, self.others) if faces is not None]

    def draw(self, rng: np.random.Generator, count: int, first: int = 0) -> Draw:
        pairs = [self.chosen(rng, first + k) for k in range(count)]
        rows = np.array([i if faces is self.faces else len(self.faces) + i for faces, i in pairs])
        targets = [np.stack([getattr(faces, name)[i] for faces, i in pairs]) for name in LABELS]
        size = self.faces.crops.shape[1]
        maps = mirrored(jitter_matrices(rng, count, size, *JITTER), rng.random(count) < 0.5, size)
        return Draw(rows, maps, size, STRENGTH, 0.0, tuple(targets))


class FfhqRecipe(Recipe):
    """The three losses of the recipe, and after each epoch the figures of the validation part."""

    network: AttributesNet

    def __init__(self, network: AttributesNet, config: FfhqConfig, held: LabelledFaces) -> None:
        super().__init__(network, config.fit)
        self.config, self.held = config, held
        self.draws = find_spec("matplotlib") is not None

    def on_fit_start(self) -> None:
        if not self.draws:
            self.print(
                f"no pictures of the curves, which are in {HISTORY_FILE}: they need matplotlib; pip install it"
            )

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        images, age, female, emotion = batch
        outputs = tuple(value.float() for value in self.network(image_batch(images)))
        years, gender, divergence = parts(outputs, age, female, emotion)
        total = self.weighed(years, gender, divergence)
        return total, {"mae": years.detach(), "bce": gender.detach(), "kl": divergence.detach()}

    def weighed(self, years: Tensor, gender: Tensor, divergence: Tensor) -> Tensor:
        c = self.config
        return c.age_weight * years + c.gender_weight * gender + c.emotion_weight * divergence

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        if self.trainer.is_global_zero:
            self.remember(self.current_epoch + 1)

    def remember(self, epoch: int) -> None:
        """Add the epoch to the history (a resumed run goes on with it), and keep what is best or due."""
        network = self.averaged.module.eval()
        run = Path(self.config.run)
        past = [row for row in read_history(run) if row["epoch"] < epoch]
        train = {f"train_{k}": float(v) for k, v in self.trainer.callback_metrics.items()}
        row = {"epoch": epoch, **train, **self.validate_on(network)}
        history = [*past, row]
        with whole_file(run / HISTORY_FILE) as file:
            file.write((json.dumps(history, indent=1) + "\n").encode())
        if all(row["val_loss"] < old["val_loss"] for old in past):
            keep_best(self.config, network, row)
        last = epoch == self.config.fit.epochs or self.trainer.should_stop
        due = self.config.picture_every and epoch % self.config.picture_every == 0
        if due or last:
            write_checkpoint(run / f"epoch_{epoch:03d}", self.config, network, row)
            if self.draws:
                plots.history(run / f"history_{epoch:03d}.png", history)

    @torch.inference_mode()
    def validate_on(self, network: nn.Module) -> dict[str, float]:
        """Loss, age error, and agreement in gender and emotion on the validation part."""
        found = [network(image_batch(images.to(self.device))) for images in tensors(self.held.crops)]
        outputs = tuple(torch.cat(part).float().cpu() for part in zip(*found, strict=True))
        labels = tuple(torch.from_numpy(v) for v in (self.held.age, self.held.female, self.held.emotion))
        years, gender, divergence = parts(outputs, *labels)
        same = outputs[2].argmax(1) == labels[2].argmax(1)
        return {
            "val_loss": float(self.weighed(years, gender, divergence)),
            "val_mae": float(years),
            "val_gender": float(((outputs[1] > 0) == (labels[1] > 0.5)).float().mean()),
            "val_emotion": float(same.float().mean()),
        }


def tensors(crops: np.ndarray, size: int = 64) -> list[Tensor]:
    return [torch.from_numpy(crops[i : i + size]) for i in range(0, len(crops), size)]


def parts(outputs: tuple, age: Tensor, female: Tensor, emotion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean age error in years, gender cross-entropy, divergence from the emotion distribution; of what is known."""
    years, gender_logit, emotion_logits = outputs
    known = age >= 0
    count = known.sum().clamp(min=1)
    divergence = F.kl_div(emotion_logits[known].log_softmax(1), emotion[known], reduction="sum")
    return (
        (years - age)[known].abs().sum() / count,
        F.binary_cross_entropy_with_logits(gender_logit, female),
        divergence / count,
    )


def read_history(run: Path) -> list[dict[str, float]]:
    path = run / HISTORY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def ffhq_spec(config: FfhqConfig) -> ModelSpec:
    args: dict[str, Any] = {"age_bins": config.age_bins, "input_size": config.input_size}
    args |= {"backbone": config.backbone} if config.backbone else {}
    args |= {"imagenet_input": True} if imagenet_input(config) else {}
    return ModelSpec(
        "attributes",
        "attributes",
        "AttributesNet",
        args,
        (config.input_size, config.input_size),
        OUTPUTS,
        labels=EMOTIONS,
        room=room_of(config),
        aligned=config.crop != "thumbnail",
    )


def write_checkpoint(folder: Path, config: FfhqConfig, network: nn.Module, row: dict[str, float]) -> None:
    """Weights, spec and card, and metadata.json with the epoch's figures and the run's options."""
    from trainers.recipes import card_text

    save_checkpoint(folder, network, ffhq_spec(config), card_text("ffhq", config))
    metadata = {
        "epoch": row["epoch"],
        "crop": config.crop,
        "figures": row,
        "options": dataclasses.asdict(config),
    }
    (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")


def keep_best(config: FfhqConfig, network: nn.Module, row: dict[str, float]) -> None:
    run = Path(config.run)
    weights = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    save_file(weights, run / BEST_FILE)
    write_checkpoint(run / "attributes", config, network, row)


def check_options(config: FfhqConfig) -> None:
    """Raises UsageError for those that do not go together."""
    if config.crop not in CROPS:
        raise UsageError(f"crop={config.crop}: is none of {', '.join(CROPS)}")
    if config.mtfl and config.crop == "thumbnail":
        raise UsageError("mtfl=true: its faces are no thumbnails; set crop=attribute or crop=wide")
    if config.picture_every < 0:
        raise UsageError(f"picture_every={config.picture_every}: must be 0 or more")
    if not config.backbone:
        check_input_size(config.input_size)


def check_labels(config: FfhqConfig) -> None:
    """Raises MienError for what is wrong with the labels, before any image is read."""
    with open_ffhq(config.data) as data:
        for part in ("train", "val"):
            data.faces(part)
    if config.mtfl:
        with ImageZip(config.data, "mtfl") as others:
            mtfl_rows(others)


def train(config: FfhqConfig) -> nn.Module:
    torch.manual_seed(config.fit.seed)
    check_options(config)
    network = make_network(config)  # before the images take their minutes
    check_labels(config)
    faces, held = thumbnails(config, "train"), thumbnails(config, "val")
    if len(faces) < config.fit.batch_size:
        raise UsageError(
            f"fit.batch_size={config.fit.batch_size}: there are only {len(faces)} faces to train on"
        )
    samples = FfhqSamples(faces, mtfl_faces(config) if config.mtfl else None)
    if not config.fit.steps_per_epoch:
        steps = len(samples) // config.fit.batch_size
        config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, steps_per_epoch=steps))
    Path(config.run).mkdir(parents=True, exist_ok=True)
    fit(FfhqRecipe(network, config, held), samples, Path(config.run))
    best = untrained(config)
    best.load_state_dict(load_file(Path(config.run) / BEST_FILE))
    return best.eval()
