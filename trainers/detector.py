"""Recipe `detector`: anchor-free face detection on full scenes."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.checkpoint import load_checkpoint
from engines.geometry import FINE_STRIDES, location_centres
from engines.networks import Detector
from trainers.fit import FitOptions, Recipe, fit, image_batch
from trainers.portraits import Paster, load_portraits
from trainers.scenes import SceneSamples, load_scenes
from trainers.teacher import TeacherDetector
from trainers.wider import load_wider


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    data: str = "data"
    run: str = "runs/detector"
    yunet: str = ""  # YuNet's ONNX file: it boxes portraits to paste, and judges spoilt faces; none: neither
    wider: str = ""  # WIDER FACE's folder, whose training pictures join the scenes; none: without
    start: str = ""  # a folder of detector weights to start from; none: from scratch
    limit: int = 0  # scenes used; 0 is all
    crop: int = 320  # training crop, px
    width: int = 24
    neck: int = 48
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

    def __init__(self, network: nn.Module, config: DetectorConfig) -> None:
        super().__init__(network, config.fit)
        centres, strides = location_centres((config.crop, config.crop), FINE_STRIDES)
        self.register_buffer("centres", torch.from_numpy(centres), persistent=False)
        self.register_buffer("strides", torch.from_numpy(strides), persistent=False)

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        images, target, boxes = batch
        logits, sides = (t.float() for t in self.network(image_batch(images)))
        rows, places = torch.nonzero(target == 1, as_tuple=True)
        reach = sides[rows, places] * self.strides[places, None]  # (P, 4)
        centres = self.centres[places]
        found = torch.cat((centres - reach[:, :2], centres + reach[:, 2:]), 1)
        giou, iou = generalised_iou(found, boxes[rows, places])
        wanted = torch.zeros_like(logits)
        wanted[rows, places] = iou.detach().clamp(min=0.04).sqrt()
        entropy = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        focus = (logits.detach().sigmoid() - wanted).abs() ** 2
        count = max(1, len(rows))
        scores = (entropy * focus)[target >= 0].sum() / count
        shape = (1 - giou).sum() / count
        return scores + 2 * shape, {"scores": scores.detach(), "giou": 1 - shape.detach()}


def train(config: DetectorConfig) -> nn.Module:
    torch.manual_seed(0)
    network = (
        load_checkpoint(Path(config.start))[0].train()
        if config.start
        else Detector(config.width, config.neck)
    )
    scenes = load_scenes(config.data, config.limit)
    if config.wider:
        scenes += load_wider(config.wider, limit=config.limit)
    teacher = TeacherDetector(config.yunet) if config.yunet else None
    paster = Paster(load_portraits(config.data, teacher, config.limit)) if teacher else None
    samples = SceneSamples(scenes, config.crop, paster, teacher)
    return fit(DetectorRecipe(network, config), samples, Path(config.run))
