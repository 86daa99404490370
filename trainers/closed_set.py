"""Recipe `closed_set`: which of N persons is it? ResNet-18/50 or our embedders, by cross-entropy or ArcFace.

Reads what `mien faces` made: FACES/train.csv, val.csv and aligned/METHOD/. Every pair of a loss and an alignment
is trained in a folder of its own, and all of them stand in one table.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import UsageError
from engines.geometry import ALIGNMENTS, FACE_SIZE, Image
from trainers.closed_set_faces import ClosedSet, Faces, load_closed_set
from trainers.closed_set_networks import NETWORKS, load_start, make_backbone, save_backbone
from trainers.closed_set_report import accuracy_figures, outputs, predict, write_report, write_table
from trainers.faces import jittered, jittered_maps
from trainers.fit import (
    FitOptions,
    RandomSamples,
    Recipe,
    check_machine,
    check_small,
    fit,
    image_batch,
    shrunk,
)
from trainers.held import Draw
from trainers.options import override
from trainers.recognition import MarginHead, risen
from trainers.run_options import claim

LOSSES = ("ce", "arcface")
JITTER = 0.08  # of the size
IMPRINTED_LOGIT = 15.0  # of a face that looks just as its person does in the mean
NOT_FACES = ("", "imagenet")  # starts that know nothing of faces
RESULT_FILE = "result.json"


@dataclass(frozen=True, slots=True)
class ClosedSetConfig:
    faces: str = "faces"  # the folder that mien faces select, crop and align worked in
    run: str = "runs/closed_set"
    network: str = "resnet18"  # resnet18, resnet50, face_resnet, mobile_face_net
    loss: str = "ce,arcface"  # one or both
    alignment: str = "similarity"  # of eyes, eyes_nose, similarity: one or several
    start: str = (
        ""  # imagenet, a checkpoint of an embedder, or a folder that this recipe left; none: from scratch
    )
    start_note: str = ""  # what the table says of it: whom it has seen before
    embedding_size: int = 256
    stem_stride: int = 4  # ResNet's as published; 2 keeps twice the detail, at four times the work
    dropout: float = 0.2
    scale: float = 45.0  # ArcFace's s
    margin: float = 0.1  # ArcFace's m, radians
    rise: float = 0.3  # share of a training from scratch without margin, and the next over which s and m rise
    label_smoothing: float = 0.1  # of cross-entropy
    degrees: float = 10.0  # of random turning
    small: int = 0  # px: side of the images in the first part of training, which is faster; 0: all are of 112
    small_share: float = 0.7  # how large that part is, of batches or of time; 1: all, and it is judged so
    mirror: bool = True  # judge a face and its mirror image together
    limit: int = 0  # persons; 0 is all
    fit: FitOptions = field(
        default_factory=lambda: FitOptions(epochs=30, steps_per_epoch=125, batch_size=64, weight_decay=5e-3)
    )


class ClosedSetSamples(RandomSamples):
    """Jittered faces: image (112, 112, 3) uint8 BGR, class."""

    def __init__(self, faces: Faces, degrees: float) -> None:
        super().__init__(len(faces.records))
        self.faces, self.degrees = faces, degrees
        self.held: np.ndarray | None = None

    def sample(self, rng: np.random.Generator) -> tuple[Image, int]:
        i = int(rng.integers(len(self.faces.records)))
        image = jittered(rng, self.faces.stored(i), degrees=self.degrees, scale=JITTER)
        return image, int(self.faces.label[i])

    def pictures(self) -> list[np.ndarray]:
        if self.held is None:
            self.held = np.stack([self.faces.stored(i) for i in range(len(self.faces.records))])
        return [self.held]

    def draw(self, rng: np.random.Generator, count: int, first: int = 0) -> Draw:
        rows = rng.integers(len(self.faces.records), size=count)
        maps = jittered_maps(rng, count, degrees=self.degrees, scale=JITTER)
        return Draw(rows, maps, FACE_SIZE, 0.8, 0.1, (self.faces.label[rows],))


class ClosedSetNetwork(nn.Module):
    """A backbone and its head: (B, 3, 112, 112) normalised -> scores of all persons (B, N)."""

    def __init__(
        self, backbone: nn.Module, embedding_size: int, persons: int, config: ClosedSetConfig
    ) -> None:
        super().__init__()
        margin = config.margin if config.loss == "arcface" else None
        self.backbone = backbone
        self.head = MarginHead(embedding_size, persons, config.scale, margin)
        self.angular = config.loss == "arcface"
        self.first_size = config.small  # px of the images that training begins with; 0: as they are
        self.judged_size = config.small if config.small_share >= 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        embedding = self.backbone(shrunk(x, self.judged_size))  # (B, D)
        if not self.angular:
            return embedding @ self.head.weight.T
        return F.normalize(embedding) @ F.normalize(self.head.weight).T * self.head.scale


class Shrunk(nn.Module):
    """`shrunk` as a layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return shrunk(x, self.size)


class ClosedSetRecipe(Recipe):
    """Cross-entropy over the persons; by ArcFace the true one's angle is widened first."""

    def __init__(self, network: ClosedSetNetwork, config: ClosedSetConfig) -> None:
        super().__init__(network, config.fit)
        self.smoothing = 0.0 if network.angular else config.label_smoothing
        self.rise = config.rise if config.start in NOT_FACES else 0.0
        self.small_share = config.small_share

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        images, label = batch
        done = self.share_done(self.global_step)
        size = self.network.first_size if done < self.small_share else self.network.judged_size
        embedding = self.network.backbone(shrunk(image_batch(images), size)).float()
        share = risen(done, self.rise)
        with torch.autocast(embedding.device.type, enabled=False):  # bf16 is too coarse for angles
            logits = self.network.head(embedding, label, share)
        loss = F.cross_entropy(logits, label, label_smoothing=self.smoothing)
        return loss, {"right": (logits.argmax(1) == label).float().mean()}


def train_closed_set(settings: Sequence[str]) -> Path:
    """Train every pair of `loss` and `alignment`; returns the table, run/table.md. A second call resumes."""
    config = override(ClosedSetConfig(), settings)
    losses, alignments = (words(config, name, known) for name, known in
                          (("loss", LOSSES), ("alignment", ALIGNMENTS)))  # fmt: skip
    check_machine(config.fit)
    if config.fit.patience:
        raise UsageError("fit.patience: there is no validation loss to wait for; set fit.epochs")
    if config.network not in NETWORKS:
        raise UsageError(f"network={config.network}: is none of {', '.join(NETWORKS)}")
    check_small(config.small, FACE_SIZE)
    for alignment in alignments:
        faces = load_closed_set(Path(config.faces), alignment, config.limit)
        for loss in losses:
            train_one(dataclasses.replace(config, loss=loss, alignment=alignment), faces)
            table = write_table(Path(config.run))
    return table


def words(config: ClosedSetConfig, name: str, known: Sequence[str]) -> list[str]:
    given = [word for word in getattr(config, name).split(",") if word]
    if not given or not set(given) <= set(known):
        raise UsageError(f"{name}={getattr(config, name)}: give one or more of {', '.join(known)}")
    return given


def train_one(config: ClosedSetConfig, faces: ClosedSet) -> Path:
    """One network: its folder holds the weights, val_report_LOSS.csv and result.json."""
    start = Path(config.start).name if config.start else "scratch"
    run = Path(config.run) / f"{config.network}-{start}-{config.alignment}-{config.loss}"
    claim(dataclasses.replace(config, run=str(run)), [faces.fingerprint()])
    if done_before(run, config):
        print(f"{run}: done before", flush=True)
        return run
    torch.manual_seed(config.fit.seed)
    backbone, size = make_backbone(config)
    note = load_start(backbone, config, faces.persons)
    network = ClosedSetNetwork(backbone, size, len(faces.persons), config)
    if config.start not in NOT_FACES and not (run / "last.ckpt").exists():
        imprint(network, faces.train)
    began = time.monotonic()
    trained = fit(ClosedSetRecipe(network, config), ClosedSetSamples(faces.train, config.degrees), run)
    minutes = (time.monotonic() - began) / 60
    save_backbone(run, trained.backbone, config, faces.persons, size)
    plain, mirrored = (predict(trained, faces.val, mirror) for mirror in (False, True))
    scores = (plain + mirrored) / 2 if config.mirror else plain
    write_report(run / f"val_report_{config.loss}.csv", faces.val.records, faces.persons, scores)
    result = {
        **{name: getattr(config, name) for name in ("network", "alignment", "loss", "scale", "margin")},
        "start": note,
        "mirror": config.mirror,
        "persons": len(faces.persons),
        "train_images": len(faces.train.records),
        "val_images": len(faces.val.records),
        **accuracy_figures(scores, faces.val.label),
        "accuracy_without_mirror": accuracy_figures(plain, faces.val.label)["accuracy"],
        "samples": steps_taken(run) * config.fit.batch_size * config.fit.devices,
        "parameters": sum(p.numel() for p in trained.backbone.parameters()),
        "minutes_of_last_call": round(minutes, 1),
        "device": "gpu" if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads",
        "length": length_of(config),
    }
    (run / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{run}: {result['accuracy']:.2%} of {result['val_images']} right", flush=True)
    return run


def length_of(config: ClosedSetConfig) -> dict[str, float]:
    return {name: getattr(config.fit, name) for name in ("epochs", "until")}


def done_before(run: Path, config: ClosedSetConfig) -> bool:
    """Whether the folder holds what a training of this length came to, judged as is asked for now."""
    path = run / RESULT_FILE
    if not path.is_file() or not (run / "last.ckpt").is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    return found.get("length") == length_of(config) and found["mirror"] == config.mirror


def imprint(network: ClosedSetNetwork, faces: Faces) -> None:
    """Start the head from each person's mean embedding (Qi et al. 2018, "Low-shot learning", sec. 3.2)."""
    seen = nn.Sequential(Shrunk(network.first_size), network.backbone)
    embedding = outputs(seen, faces, fast=True)  # (M, D)
    network.train()
    label = torch.from_numpy(faces.label)
    total = torch.zeros_like(network.head.weight).index_add_(0, label, F.normalize(embedding))
    scale = 1.0 if network.angular else IMPRINTED_LOGIT / float(embedding.norm(dim=1).mean())
    with torch.no_grad():
        network.head.weight.copy_(F.normalize(total) * scale)


def steps_taken(run: Path) -> int:
    return int(torch.load(run / "last.ckpt", map_location="cpu", weights_only=True)["global_step"])
