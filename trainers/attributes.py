"""Recipe `attributes`: age, gender and emotion from one trunk, each set teaching the heads it has labels for."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.checkpoint import load_checkpoint
from engines.geometry import ATTRIBUTE_TEMPLATE, Floats, Image
from engines.networks import AttributesNet, FaceResNet
from engines.spec import EMOTIONS
from trainers.faces import FaceFinder, batched, box_from_interocular, jittered, stored_crop
from trainers.fit import FitOptions, RandomSamples, Recipe, fit, image_batch
from trainers.recognition import utkface_part
from trainers.zips import ImageZip

UNKNOWN = -1.0
HARD_LABELS = {
    "angry": "anger",
    "contempt": "contempt",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "sad": "sadness",
    "surprised": "surprise",
    "surprise": "surprise",
}
# Interocular px and eye height (0..1) as each set is stored: the first guess for the landmarks.
STORED = {
    "utkface": (43.0, 0.30),
    "ferplus": (42.0, 0.38),
    "emotion_masked": (43.0, 0.32),
    "expw": (32.0, 0.45),
}


@dataclass(frozen=True, slots=True)
class AttributesConfig:
    data: str = "data"
    run: str = "runs/attributes"
    start: str = ""  # an embedder checkpoint whose trunk to start from; none: from scratch
    limit: int = 0  # images used of each set; 0 is all
    fit: FitOptions = field(
        default_factory=lambda: FitOptions(
            epochs=16, steps_per_epoch=100, batch_size=64, learning_rate=1.5e-3
        )
    )


@dataclass(frozen=True, slots=True)
class LabelledFaces:
    """Aligned crops (M, 144, 144, 3); age in years (M,), female 0/1 (M,), emotion (M, 8); UNKNOWN where unlabelled."""

    crops: np.ndarray
    age: Floats
    female: Floats
    emotion: Floats

    def __len__(self) -> int:
        return len(self.crops)


def align_set(data: ImageZip, name: str, files: list[str], finder: FaceFinder) -> np.ndarray:
    """Stored attribute crops of every file, by our own landmarks; grey 48 px pictures are enlarged first."""
    crops: list[Image] = []
    interocular, height = STORED[name]
    for batch in batched(files):
        images = [data.image(file) for file in batch]
        if name == "ferplus":
            images = [
                cv2.resize(i, (112, 112), interpolation=cv2.INTER_CUBIC).astype(np.uint8) for i in images
            ]
        guess = box_from_interocular(images[0].shape[0], interocular, height)
        points, _ = finder.refine(images, np.tile(guess, (len(images), 1)))
        crops += [stored_crop(i, p, ATTRIBUTE_TEMPLATE) for i, p in zip(images, points, strict=True)]
    return np.stack(crops)


def utkface(config: AttributesConfig, part: str, finder: FaceFinder) -> LabelledFaces:
    with ImageZip(config.data, "utkface") as data:
        rows = [row for row in data.rows() if utkface_part(row["file"]) == part]
        rows = rows[: config.limit or None]
        crops = align_set(data, "utkface", [row["file"] for row in rows], finder)
    age = np.array([float(row["age_years"]) for row in rows], np.float32)
    female = np.array([float(row["gender"]) for row in rows], np.float32)
    return LabelledFaces(crops, age, female, np.full((len(rows), len(EMOTIONS)), UNKNOWN, np.float32))


def ferplus_rows(data: ImageZip, part: str) -> list[dict[str, str]]:
    """FER+ rows of a part: first row of each path, with votes; training rows that recur in another part left out.

    `test` keeps the PrivateTest pictures whose single highest vote is an emotion.
    """
    first: dict[str, dict[str, str]] = {}
    for row in data.rows():
        first.setdefault(row["path"], row)
    usage = {"train": ("Training",), "val": ("PublicTest",), "test": ("PrivateTest",)}[part]
    rows = [row for row in first.values() if row["usage"] in usage and votes(row).sum() > 0]
    if part == "test":
        return [row for row in rows if _clear_winner(row)]
    return [
        row for row in rows if row["dup_of"] not in first or first[row["dup_of"]]["usage"] == row["usage"]
    ]


def votes(row: dict[str, str]) -> Floats:
    return np.array([float(row[f"v_{name}"]) for name in EMOTIONS], np.float32)


def _clear_winner(row: dict[str, str]) -> bool:
    counts = votes(row)
    return bool((counts == counts.max()).sum() == 1 and counts.max() > float(row["unknown"] or 0))


def ferplus(config: AttributesConfig, part: str, finder: FaceFinder) -> LabelledFaces:
    with ImageZip(config.data, "ferplus") as data:
        rows = ferplus_rows(data, part)[: config.limit or None]
        crops = align_set(data, "ferplus", [row["path"] for row in rows], finder)
    emotion = np.stack([votes(row) / votes(row).sum() for row in rows])
    return _emotion_only(crops, emotion)


def hard_labelled(config: AttributesConfig, name: str, finder: FaceFinder) -> LabelledFaces:
    """A colour set with one emotion a picture; black backgrounds are filled with noise, which teaches nothing."""
    with ImageZip(config.data, name) as data:
        rows = data.rows()
        rows = rows[:: max(1, len(rows) // config.limit)][: config.limit] if config.limit else rows
        crops = align_set(data, name, [row["file"] for row in rows], finder)
    emotion = np.full((len(rows), len(EMOTIONS)), 0.01, np.float32)
    for i, row in enumerate(rows):
        emotion[i, EMOTIONS.index(HARD_LABELS[row["emotion"]])] = 0.93
    if name == "emotion_masked":
        rng = np.random.default_rng(0)
        crops = np.stack([fill_black(rng, crop) for crop in crops])
    return _emotion_only(crops, emotion)


def fill_black(rng: np.random.Generator, crop: Image) -> Image:
    """Put smooth random texture where the background was blacked out."""
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    texture = cv2.resize(coarse, crop.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    dark = cv2.morphologyEx((crop.max(2) < 12).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    return np.where(dark[..., None] > 0, texture, crop).astype(np.uint8)


def _emotion_only(crops: np.ndarray, emotion: Floats) -> LabelledFaces:
    unknown = np.full(len(crops), UNKNOWN, np.float32)
    return LabelledFaces(crops, unknown, unknown, emotion)


class AttributeSamples(RandomSamples):
    """A face of one set, drawn by the set's share: image (112, 112, 3), age, female, emotion (8,)."""

    def __init__(self, sets: list[LabelledFaces], shares: list[float]) -> None:
        super().__init__(sum(len(s) for s in sets))
        self.sets, self.shares = sets, np.array(shares) / sum(shares)

    def sample(self, rng: np.random.Generator) -> tuple[Image, np.float32, np.float32, Floats]:
        faces = self.sets[int(rng.choice(len(self.sets), p=self.shares))]
        i = int(rng.integers(len(faces)))
        crop = jittered(rng, faces.crops[i], degrees=8, scale=0.08)
        return crop, faces.age[i], faces.female[i], faces.emotion[i]


class AttributesRecipe(Recipe):
    """L1 on age in decades, cross-entropy on gender, cross-entropy on the votes for emotion."""

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        images, age, female, emotion = batch
        found_age, gender_logit, emotion_logits = (t.float() for t in self.network(image_batch(images)))
        aged, judged = age >= 0, emotion[:, 0] >= 0
        total, figures = images.new_zeros((), dtype=torch.float), {}
        if aged.any():
            years = F.smooth_l1_loss(found_age[aged] / 10, age[aged] / 10, beta=0.3)
            gender = F.binary_cross_entropy_with_logits(gender_logit[aged], female[aged])
            total = total + years + gender
            figures["mae"] = (found_age[aged] - age[aged]).detach().abs().mean()
            figures["gender"] = ((gender_logit[aged] > 0) == (female[aged] > 0.5)).float().mean()
        if judged.any():
            total = total + F.cross_entropy(emotion_logits[judged], emotion[judged])
            right = emotion_logits[judged].argmax(1) == emotion[judged].argmax(1)
            figures["emotion"] = right.float().mean()
        return total, figures


def start_from(network: AttributesNet, checkpoint: str) -> None:
    """Copy an embedder's trunk: faces are known to it already, nothing it saw is judged here."""
    embedder, _ = load_checkpoint(Path(checkpoint))
    assert isinstance(embedder, FaceResNet)
    network.trunk.load_state_dict(embedder.trunk.state_dict())


def train(config: AttributesConfig) -> nn.Module:
    torch.manual_seed(0)
    finder = FaceFinder()
    sets = [
        utkface(config, "train", finder),
        ferplus(config, "train", finder),
        hard_labelled(config, "emotion_masked", finder),
        hard_labelled(config, "expw", finder),
    ]
    network = AttributesNet()
    if config.start:
        start_from(network, config.start)
    return fit(
        AttributesRecipe(network, config.fit), AttributeSamples(sets, [4, 4, 1.5, 0.5]), Path(config.run)
    )
