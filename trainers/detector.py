"""Recipe `detector`: anchor-free face detection on full scenes."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.checkpoint import load_checkpoint
from engines.errors import MienError, UsageError
from engines.geometry import FINE_STRIDES, location_centres
from engines.networks import Detector
from trainers.fit import FitOptions, Recipe, fit, image_batch
from trainers.portraits import Paster, has_portraits, load_portraits
from trainers.scenes import Scene, SceneSamples, has_scenes, load_scenes
from trainers.teacher import TeacherDetector
from trainers.wider import load_wider

COARSEST = 32  # px, the detector's coarsest stride
MODEL_SEES = 0.4  # score from which another network's box is one to learn


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    data: str = "data"
    run: str = "runs/detector"
    yunet: str = ""  # YuNet's ONNX file: it boxes portraits to paste, and judges spoilt faces; none: neither
    wider: str = (
        ""  # WIDER FACE's folder, whose training pictures join the scenes, or do without; none: scenes alone
    )
    start: str = (
        ""  # a folder of detector weights to start from, of which a shallower network takes what it has
    )
    learn_from: str = (
        ""  # a folder of detector weights whose answers are learnt beside the labels; none: labels alone
    )
    limit: int = 0  # scenes used; 0 is all
    crop: int = 320  # training crop, px
    width: int = 24
    neck: int = 48
    blocks: tuple[int, ...] = (1, 2, 2)  # residual blocks at strides 4, 8 and 16
    towers: tuple[int, ...] = (2, 2, 2)  # convolutions of the heads at strides 8, 16 and 32
    fit: FitOptions = field(
        default_factory=lambda: FitOptions(
            epochs=66, steps_per_epoch=200, batch_size=16, learning_rate=1.5e-3, ema_decay=0.999
        )
    )


def generalised_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """GIoU and IoU of paired boxes (P, 4) xyxy (Rezatofighi et al. 2019)."""
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - overlap
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    iou = overlap / union.clamp(min=1e-6)
    return iou - (hull - union) / hull.clamp(min=1e-6), iou


class DetectorRecipe(Recipe):
    """Quality focal loss on scores, whose target is the square root of the box's own IoU, and GIoU on boxes.

    Li et al. 2020, "Generalized focal loss", sec. 3.1. The root keeps a good face's score near 0.9,
    where the plain IoU would leave it at 0.8, among the round things.
    """

    def __init__(self, network: nn.Module, config: DetectorConfig, model: nn.Module | None = None) -> None:
        super().__init__(network, config.fit)
        self.model = (
            model,
        )  # whose answers are learnt, too; in a tuple it is no part of what is trained and saved
        centres, strides = location_centres((config.crop, config.crop), FINE_STRIDES)
        self.register_buffer("centres", torch.from_numpy(centres), persistent=False)
        self.register_buffer("strides", torch.from_numpy(strides), persistent=False)

    def on_fit_start(self) -> None:
        for model in self.model:
            if model is not None:
                model.to(self.device)  # nobody else does

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        images, target, boxes = batch
        batch_of_images = image_batch(images)
        logits, sides = (t.float() for t in self.network(batch_of_images))
        rows, places = torch.nonzero(target == 1, as_tuple=True)
        giou, iou = generalised_iou(self.found(sides, rows, places), boxes[rows, places])
        wanted = torch.zeros_like(logits)
        wanted[rows, places] = iou.detach().clamp(min=0.04).sqrt()
        count = max(1, len(rows))
        scores = focal(logits, wanted)[target >= 0].sum() / count
        shape = (1 - giou).sum() / count
        total, figures = scores + 2 * shape, {"scores": scores.detach(), "giou": 1 - shape.detach()}
        if self.model[0] is not None:
            alike, figures["as_model"] = self.like_model(self.model[0], batch_of_images, logits, sides)
            total = total + alike
        return total, figures

    def found(self, sides: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """The boxes (P, 4) xyxy of some locations."""
        reach, centres = sides[rows, places] * self.strides[places, None], self.centres[places]
        return torch.cat((centres - reach[:, :2], centres + reach[:, 2:]), 1)

    def like_model(
        self, model: nn.Module, images: Tensor, logits: Tensor, sides: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same two losses against another network's answers, at every location; and the GIoU with its boxes."""
        with torch.no_grad():
            wanted, its_sides = (t.float() for t in model(images))
            wanted = wanted.sigmoid()
        rows, places = torch.nonzero(wanted >= MODEL_SEES, as_tuple=True)
        count = max(1, len(rows))
        giou, _ = generalised_iou(self.found(sides, rows, places), self.found(its_sides, rows, places))
        shape = (1 - giou).sum() / count
        return focal(logits, wanted).sum() / count + 2 * shape, 1 - shape.detach()


def focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of each location, weighted by how far off it is (Li et al. 2020, sec. 3.1)."""
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return entropy * (logits.detach().sigmoid() - wanted).abs() ** 2


def take_layers(network: Detector, checkpoint: str) -> None:
    """Copy the weights of another detector, as deep or deeper. Raises UsageError where a layer lacks its own."""
    other = load_checkpoint(Path(checkpoint))[0].state_dict()
    own = network.state_dict()
    lacking = [k for k, v in own.items() if k not in other or other[k].shape != v.shape]
    if lacking:
        raise UsageError(
            f"start={checkpoint}: has no weights for {lacking[0]} and {len(lacking) - 1} more; set width, neck, blocks "
            "and towers to what it has, or less"
        )
    network.load_state_dict({k: other[k] for k in own})


def training_scenes(folder: str, wider: str, limit: int = 0) -> list[Scene]:
    """Of scenes.zip and WIDER FACE; of the latter alone where only that is there. Raises MienError without any face."""
    scenes = [] if wider and not has_scenes(folder) else load_scenes(folder, limit)
    if wider:
        if not scenes:
            print(f"{folder}: holds no scenes.zip, WIDER FACE is all there is", flush=True)
        scenes += load_wider(wider, limit=limit)
    if not any(len(scene.faces) for scene in scenes):
        raise MienError(f"{wider or folder}: none of {len(scenes)} training scenes has a face; label some")
    return scenes


def train(config: DetectorConfig) -> nn.Module:
    if config.crop % COARSEST or not config.crop:
        raise UsageError(f"crop={config.crop}: must be a multiple of {COARSEST}")
    torch.manual_seed(config.fit.seed)
    network = Detector(config.width, config.neck, config.blocks, config.towers)
    if config.start:
        take_layers(network, config.start)
    model = load_checkpoint(Path(config.learn_from))[0] if config.learn_from else None
    if not isinstance(model, Detector | None):
        raise UsageError(f"learn_from={config.learn_from}: holds a {type(model).__name__}, not a detector")
    scenes = training_scenes(config.data, config.wider, config.limit)
    teacher = TeacherDetector(config.yunet) if config.yunet else None
    paster = None
    if teacher and has_portraits(config.data):
        paster = Paster(load_portraits(config.data, teacher, config.limit))
    elif teacher:
        print(f"{config.data}: holds no mtfl.zip and ffhq.zip, no portrait is pasted", flush=True)
    samples = SceneSamples(scenes, config.crop, paster, teacher)
    return fit(DetectorRecipe(network, config, model), samples, Path(config.run))
