"""Recipe `expression`: five classes from an attribute crop, on any of several trunks."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from engines.errors import UsageError
from engines.expression import expression_spec
from engines.geometry import FACE_SIZE, Floats, Image
from engines.networks import ExpressionNet
from engines.networks.expression import KINDS
from engines.spec import EXPRESSIONS
from trainers.expression_crops import FILLED, aligned, changed, draw_changed, filled, inner
from trainers.expression_data import DataOptions, Picture, labelled_pictures
from trainers.fit import FitOptions, RandomSamples, Recipe, check_small, fit, image_batch
from trainers.foreign_weights import start_network
from trainers.held import Draw


@dataclass(frozen=True, slots=True)
class ModelOptions:
    kind: str = "face_trunk"
    dropout: float = 0.4
    start: str = ""  # a checkpoint folder, a .pt file, or imagenet; none: from scratch
    enlarged: int = 0  # times, before torchvision's networks see a crop; 0: as the kind is used to
    pretrain_epochs: int = 0  # of masked-autoencoder training on unlabelled faces, for vit_tiny


@dataclass(frozen=True, slots=True)
class LoggingOptions:
    logger: str = "csv"  # csv, mlflow or tensorboard


def _default_training() -> FitOptions:
    return FitOptions(
        epochs=60,
        steps_per_epoch=200,
        batch_size=64,
        learning_rate=1.5e-3,
        weight_decay=0.02,
        patience=10,
        logger="",  # as LoggingOptions has it
    )


@dataclass(frozen=True, slots=True)
class ExpressionConfig:
    run: str = "runs/expression"
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    training: FitOptions = field(default_factory=_default_training)
    logging: LoggingOptions = field(default_factory=LoggingOptions)
    label_smoothing: float = 0.05
    balance: float = 0.5  # 0: classes as often as they occur; 1: equally often
    small: int = 0  # px: side of the images in the first part of training, which is faster; 0: all are of 112
    small_share: float = 0.6  # how large that part is, of batches or of time
    validated: int = 2500  # pictures of the validation part that are judged after each epoch; 0 is all

    @property
    def fit(self) -> FitOptions:
        return dataclasses.replace(self.training, logger=self.training.logger or self.logging.logger)


class ExpressionSamples(RandomSamples):
    """A picture of a class, changed a little: image (112, 112, 3) uint8 BGR, label, wanted probabilities (5,)."""

    def __init__(self, crops: np.ndarray, pictures: list[Picture], balance: float) -> None:
        super().__init__(len(crops))
        self.crops = crops
        labels = np.array([picture.label for picture in pictures])
        self.wanted = wanted_probabilities(pictures)
        self.masked = np.array([picture.source == "emotion_masked" for picture in pictures])
        self.of_class = [np.flatnonzero(labels == label) for label in range(len(EXPRESSIONS))]
        shares = np.array([len(members) for members in self.of_class], float) ** (1 - balance)
        self.shares = shares / shares.sum()
        self.held: np.ndarray | None = None

    def pictures(self) -> list[np.ndarray]:
        """All, and after them once more the masked, their background filled."""
        if self.held is None:
            self.held = filled(np.random.default_rng(self.seed), self.crops[self.masked])
        return [self.crops, self.held]

    def draw(self, rng: np.random.Generator, count: int, first: int = 0) -> Draw:
        labels = rng.choice(len(self.shares), size=count, p=self.shares)
        chosen = np.array([rng.choice(self.of_class[label]) for label in labels])
        again = len(self.crops) + np.cumsum(self.masked)[chosen] - 1  # where it is filled
        rows = np.where(self.masked[chosen] & (rng.random(count) < FILLED), again, chosen)
        return draw_changed(rng, rows, self.masked[chosen], (labels, self.wanted[chosen]))

    def sample(self, rng: np.random.Generator) -> tuple[Image, int, Floats]:
        label = int(rng.choice(len(self.shares), p=self.shares))
        i = int(rng.choice(self.of_class[label]))
        return changed(rng, self.crops[i], bool(self.masked[i])), label, self.wanted[i]


def wanted_probabilities(pictures: Sequence[Picture]) -> Floats:
    """(M, 5): half the label, half the shares of the votes; the label alone where nobody voted."""
    certain = np.eye(len(EXPRESSIONS), dtype=np.float32)[[picture.label for picture in pictures]]
    voted = [picture.shares or row for picture, row in zip(pictures, certain, strict=True)]
    return (certain + np.array(voted, np.float32)) / 2


class ExpressionImages(Dataset):
    """Pictures as they are: image (112, 112, 3) uint8 BGR, label."""

    def __init__(self, crops: np.ndarray, pictures: list[Picture]) -> None:
        self.crops, self.pictures = crops, pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        return inner(self.crops[index]), self.pictures[index].label


class ExpressionRecipe(Recipe):
    """Cross-entropy against the label and what people voted, by option smoothed; validation against the label alone."""

    def __init__(self, network: nn.Module, config: ExpressionConfig) -> None:
        super().__init__(network, config.fit)
        self.smoothing = config.label_smoothing
        self.small, self.small_share = config.small, config.small_share

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        images, label, wanted = batch
        logits = self.network(self.small_at_first(image_batch(images))).float()
        right = (logits.argmax(1) == label).float().mean()
        return F.cross_entropy(logits, wanted, label_smoothing=self.smoothing), {"accuracy": right}

    def validation_loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        images, label = batch
        logits = self.averaged(image_batch(images)).float()
        right = (logits.argmax(1) == label).float().mean()
        return F.cross_entropy(logits, label), {"accuracy": right}


def make_network(model: ModelOptions) -> ExpressionNet:
    """Raises UsageError for an unknown kind and one that masking does not pretrain, MienError for a wrong start."""
    if model.kind not in KINDS:
        raise UsageError(f"model.kind={model.kind}: is none of {', '.join(KINDS)}")
    if model.pretrain_epochs and model.kind != "vit_tiny":
        raise UsageError(f"model.pretrain_epochs: {model.kind} is not pretrained by masking, vit_tiny is")
    spec = expression_spec(model.kind, model.dropout, model.enlarged)
    network = ExpressionNet(**spec.network_args)
    if model.start:
        start_network(network, model.kind, model.start)
    return network


def load_part(config: ExpressionConfig, part: str, limit: int = 0) -> tuple[np.ndarray, list[Picture]]:
    """Stored crops (M, 144, 144, 3) and their pictures; `limit` takes them evenly."""
    pictures, parts = labelled_pictures(config.data)
    chosen = [picture for picture, its in zip(pictures, parts, strict=True) if its == part]
    if limit and len(chosen) > limit:
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, limit).astype(int)]
    return aligned(config.data.path, chosen, Path(config.run)), chosen


def train(config: ExpressionConfig) -> nn.Module:
    check_small(config.small, FACE_SIZE)
    if config.small and config.model.kind == "vit_tiny":
        raise UsageError(f"small={config.small}: vit_tiny knows one size")
    torch.manual_seed(config.fit.seed)
    network = make_network(config.model)  # first: a wrong model is told before minutes of aligning
    faces = load_part(config, "train")
    judged = load_part(config, "val", config.validated)
    if config.model.pretrain_epochs:
        _pretrain(network, config, faces[0])
    samples = ExpressionSamples(*faces, config.balance)
    return fit(ExpressionRecipe(network, config), samples, Path(config.run), ExpressionImages(*judged))


def _pretrain(network: ExpressionNet, config: ExpressionConfig, crops: np.ndarray) -> None:
    from trainers.masked_autoencoder import pretrain, unlabelled_faces

    sets = [crops, *unlabelled_faces(config.data.path, config.data.limit)]
    pretrain(network, config.fit, config.model.pretrain_epochs, Path(config.run), sets)
