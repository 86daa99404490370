"""Recipe `recognition`: the embedder, by distillation from a permissive teacher and by identity."""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.checkpoint import file_sha256, make_network
from engines.errors import UsageError
from engines.geometry import FACE_SIZE, Floats, Image, warp
from engines.networks import FaceResNet
from engines.spec import ModelSpec
from trainers.batched_changes import mirrored
from trainers.faces import (
    STORED_SIZE,
    FaceFinder,
    batched,
    disturbed,
    shown,
    to_inner,
)
from trainers.fit import FitOptions, RandomSamples, Recipe, fit, image_batch
from trainers.foreign_weights import own_start
from trainers.held import Draw
from trainers.recognition_sets import celeba_faces, check_labels, lfw_faces, unlabelled_faces
from trainers.teacher import TeacherEmbedder
from trainers.transforms import jitter_matrix
from trainers.whole_file import whole_file
from trainers.zips import SEED

LFW_MEETS = 0.60  # mean teacher cosine from which a CelebA identity is taken for an LFW person
LOSSES = ("arcface", "ce")
ANY_VIEW = 2**20  # views of a face where no teacher has to see them first


@dataclass(frozen=True, slots=True)
class RecognitionConfig:
    data: str = "data"
    run: str = "runs/recognition"
    teacher: str = ""  # an ONNX embedder to distil from; none: identity alone
    views: int = 4  # of each face, which teacher and pupil see alike
    start: str = ""  # a folder of embedder weights to start from; none: from scratch
    frozen: int = 0  # first layers of the trunk that stay as they are; 5 of 13 save a quarter of the time
    labelled: bool = True  # false: no CelebA; distil from the other sets, whose people nobody has labelled
    limit: int = 0  # images used of each set; 0 is all
    embedding_size: int = 192
    loss: str = "arcface"  # arcface or ce
    scale: float = 45.0  # ArcFace's s
    margin: float = 0.1  # ArcFace's m, radians
    rise: float = 0.3  # share of a training from scratch without margin, and the next over which s and m rise
    identity_weight: float = 0.15  # beside distillation
    fit: FitOptions = field(
        default_factory=lambda: FitOptions(epochs=160, steps_per_epoch=100, batch_size=64, learning_rate=3e-3)
    )


@dataclass(frozen=True, slots=True)
class FaceSet:
    """Aligned crops (M, 144, 144, 3), identity (M,) or -1, and what the teacher says of each view (M, V, D)."""

    crops: np.ndarray
    identity: np.ndarray
    teacher: Floats | None


def meets_lfw(identity: np.ndarray, embeddings: Floats, lfw: Floats) -> set[int]:
    """Identities whose mean teacher embedding is as near to an LFW face as one person's photos are."""
    found = set()
    for person in np.unique(identity[identity >= 0]):
        mean = embeddings[identity == person].mean(0)
        if float((lfw @ (mean / np.linalg.norm(mean))).max()) >= LFW_MEETS:
            found.add(int(person))
    return found


def view_map(row: int, view: int) -> Floats:
    """The (2, 3) map from stored crop `row` to a 112x112 view of it: turned, scaled and shifted a little.

    The same for the teacher as for the pupil, who otherwise learns most about how far a crop was shifted
    (Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent", sec. 3.1).
    """
    rng = np.random.default_rng((SEED, row, view))
    return to_inner(jitter_matrix(rng, STORED_SIZE, degrees=6, scale=0.06, shift=0.02))


def view_of(crop: Image, row: int, view: int) -> Image:
    return warp(crop, view_map(row, view), (FACE_SIZE, FACE_SIZE))


def load_faces(config: RecognitionConfig) -> FaceSet:
    """All training faces; LFW's people are left out where a teacher can tell who they are."""
    if not (config.labelled or config.teacher):
        raise UsageError(
            "labelled=false: without identities there is only a teacher to learn from; set teacher="
        )
    if config.views < 1:
        raise UsageError(f"views={config.views}: a teacher has to see at least one view of each face")
    check_labels(config)
    finder = FaceFinder()
    crops, identity = celeba_faces(config) if config.labelled else ([], [])
    if not config.teacher:
        return FaceSet(np.stack(crops), np.array(identity), None)
    if crops:
        teacher = TeacherEmbedder(config.teacher)  # exact: who is left out must not hang on the machine
        people = np.array(identity)
        lfw = teacher(shown(np.stack(list(lfw_faces(config, finder).values()))))
        met = meets_lfw(people, teacher(shown(np.stack(crops))), lfw)
        kept = np.flatnonzero(~np.isin(people, list(met)))
        crops, identity = [crops[i] for i in kept], [identity[i] for i in kept]
    crops += unlabelled_faces(config, finder)
    faces = np.stack(crops)
    del crops  # gigabytes
    people = np.array(identity + [-1] * (len(faces) - len(identity)))
    return FaceSet(faces, people, teacher_views(config, TeacherEmbedder(config.teacher, fast=True), faces))


def teacher_views(config: RecognitionConfig, teacher: TeacherEmbedder, faces: np.ndarray) -> Floats:
    """The teacher's answers (M, V, D) to a view and its mirror image together: a better teacher than of one side.

    They take minutes and a resumed run needs them: they are kept in the run's folder, by teacher and crops.
    """
    weights = Path(config.teacher)
    key = hashlib.sha256(file_sha256(weights).encode() if weights.is_file() else b"")
    key.update(np.ascontiguousarray(faces))
    kept = Path(config.run) / f"teacher_{len(faces)}x{config.views}_{key.hexdigest()[:12]}.npy"
    if kept.is_file():
        return np.load(kept)
    answers = []
    for rows in batched(range(len(faces))):
        seen = np.stack([view_of(faces[row], row, view) for row in rows for view in range(config.views)])
        both = teacher(seen) + teacher(seen[:, :, ::-1])
        both /= np.linalg.norm(both, axis=1, keepdims=True).clip(1e-6)
        answers.append(both.reshape(len(rows), config.views, -1))
    with whole_file(kept) as file:
        np.save(file, np.concatenate(answers))
    return np.load(kept)


class FaceSamples(RandomSamples):
    """Views of faces, degraded: image (112, 112, 3) uint8 BGR, class or -1, teacher embedding (D,)."""

    def __init__(self, faces: FaceSet, embedding_size: int) -> None:
        super().__init__(len(faces.crops))
        people = np.unique(faces.identity[faces.identity >= 0])
        self.classes = max(1, len(people))
        number = {int(person): i for i, person in enumerate(people)}
        self.label = np.array([number.get(int(person), -1) for person in faces.identity])
        self.crops, self.teacher = faces.crops, faces.teacher
        self.views = ANY_VIEW if faces.teacher is None else faces.teacher.shape[1]
        self.embedding_size = embedding_size

    def sample(self, rng: np.random.Generator) -> tuple[Image, int, Floats]:
        row, view = int(rng.integers(len(self.crops))), int(rng.integers(self.views))
        image = disturbed(rng, view_of(self.crops[row], row, view))
        return image, int(self.label[row]), self.answers(np.array([row]), np.array([view]))[0]

    def pictures(self) -> list[np.ndarray]:
        return [self.crops]

    def draw(self, rng: np.random.Generator, count: int, first: int = 0) -> Draw:
        rows, views = rng.integers(len(self.crops), size=count), rng.integers(self.views, size=count)
        maps = np.stack([view_map(int(row), int(view)) for row, view in zip(rows, views, strict=True)])
        maps = mirrored(maps, rng.random(count) < 0.5, FACE_SIZE)
        return Draw(rows, maps, FACE_SIZE, 0.8, 0.1, (self.label[rows], self.answers(rows, views)))

    def answers(self, rows: np.ndarray, views: np.ndarray) -> Floats:
        """(B, D); zeros without a teacher."""
        if self.teacher is None:
            return np.zeros((len(rows), self.embedding_size), np.float32)
        return self.teacher[rows, views]

    def prototypes(self) -> Tensor | None:
        """The mean of what the teacher says of each person, (classes, D): where their class begins."""
        if self.teacher is None or not (self.label >= 0).any():
            return None
        means = [self.teacher[self.label == k].mean((0, 1)) for k in range(self.classes)]
        return torch.from_numpy(np.stack(means))


class MarginHead(nn.Module):
    """Training only: class logits of embeddings, with an additive angular margin (ArcFace) or plain (CE).

    A margin of 0 is that of scaled cosines; None is for plain logits, which no scale changes.
    """

    def __init__(self, embedding_size: int, classes: int, scale: float, margin: float | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, embedding_size) * 0.05)
        self.scale, self.margin = scale, margin
        self.first_scale = min(scale, math.sqrt(embedding_size))  # unit variance of random angles' logits

    def forward(self, embedding: Tensor, label: Tensor, share: float = 1.0) -> Tensor:
        """`share` (0..1) of the margin, and of the way from `first_scale` to the scale: less than 1 to begin with."""
        if self.margin is None:
            return embedding @ self.weight.T
        cosine = F.normalize(embedding) @ F.normalize(self.weight).T
        angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        own = F.one_hot(label, len(self.weight)).bool()
        widened = torch.where(own, (angle + share * self.margin).cos(), cosine)
        return widened * (self.first_scale + share * (self.scale - self.first_scale))  # (B, classes)


def risen(share: float, rise: float) -> float:
    """How much of ArcFace's margin and scale there is (0..1) after a share of training (0..1).

    With all of both at once a random network does best to send every face to the same place, and stays there.
    """
    return min(1.0, max(0.0, share / rise - 1)) if rise else 1.0


class RecognitionRecipe(Recipe):
    """Cosine distance to the teacher, and cross-entropy over the identities that are known."""

    def __init__(self, network: nn.Module, config: RecognitionConfig, classes: int) -> None:
        super().__init__(network, config.fit)
        margin = config.margin if config.loss == "arcface" else None
        self.head = MarginHead(config.embedding_size, classes, config.scale, margin)
        self.distils = bool(config.teacher)
        self.identity_weight = config.identity_weight if self.distils else 1.0
        self.rise = 0.0 if self.distils or config.start else config.rise

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        images, label, teacher = batch
        embedding = self.network(image_batch(images)).float()
        known = label >= 0
        total, figures = embedding.new_zeros(()), {}
        if self.distils:
            far = 1 - F.cosine_similarity(embedding, teacher)
            total, figures["cosine"] = far.mean() * 10, 1 - far.detach().mean()
        if known.any():
            share = risen(self.share_done(self.global_step), self.rise)
            with torch.autocast(embedding.device.type, enabled=False):  # bf16 is too coarse for angles
                logits = self.head(embedding[known], label[known], share)
            identity = F.cross_entropy(logits, label[known])
            total, figures["identity"] = total + self.identity_weight * identity, identity.detach()
        return total, figures


def keep_as_is(network: FaceResNet, layers: int) -> None:
    """The trunk's first layers learn no more: neither their weights nor what their batch norms have seen."""
    if not 0 <= layers < len(network.trunk):
        raise UsageError(f"frozen={layers}: the trunk has {len(network.trunk)} layers; freeze fewer")
    for layer in list(network.trunk)[:layers]:  # a slice of it would be another trunk
        layer.requires_grad_(False).eval()


def embedder_spec(config: RecognitionConfig) -> ModelSpec:
    args = {"embedding_size": config.embedding_size}
    return ModelSpec("embedder", "embedder", "FaceResNet", args, (112, 112), ("embedding",), threshold=0.5)


def first_network(config: RecognitionConfig) -> FaceResNet:
    """What training begins with. Raises UsageError where layers are to be frozen that are not there or know nothing."""
    if not config.start and config.frozen:
        raise UsageError(f"frozen={config.frozen}: layers that have learnt nothing; name weights with start=")
    spec = embedder_spec(config)
    network = own_start(config.start, spec) if config.start else make_network(spec)
    assert isinstance(network, FaceResNet)
    keep_as_is(network, config.frozen)
    return network


def train(config: RecognitionConfig) -> nn.Module:
    torch.manual_seed(config.fit.seed)
    if config.loss not in LOSSES:
        raise UsageError(f"loss={config.loss}: is none of {', '.join(LOSSES)}")
    network = first_network(config)  # before the teacher takes its minutes
    faces = load_faces(config)
    if faces.teacher is not None and faces.teacher.shape[2] != config.embedding_size:
        length = faces.teacher.shape[2]
        raise UsageError(
            f"embedding_size={config.embedding_size}: the teacher gives {length} numbers; set embedding_size={length}"
        )
    samples = FaceSamples(faces, config.embedding_size)
    recipe = RecognitionRecipe(network, config, samples.classes)
    if (prototypes := samples.prototypes()) is not None:
        recipe.head.weight.data.copy_(prototypes)
    return fit(recipe, samples, Path(config.run))
