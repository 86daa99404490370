"""Recipe `recognition`: the embedder, by distillation from a permissive teacher and by identity."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.checkpoint import file_sha256, load_checkpoint
from engines.errors import MienError, UsageError
from engines.geometry import FACE_SIZE, Floats, Image, warp
from engines.networks import FaceResNet
from trainers.batched_changes import mirrored
from trainers.faces import (
    STORED_SIZE,
    FaceFinder,
    batched,
    box_from_interocular,
    disturbed,
    shown,
    stored_crop,
    to_inner,
)
from trainers.fit import FitOptions, RandomSamples, Recipe, fit, image_batch
from trainers.held import Draw
from trainers.label_checks import FIVE_POINTS, checked_rows, first_wrong, number, pictures, word
from trainers.scenes import SCENE, is_held_out
from trainers.teacher import TeacherEmbedder
from trainers.transforms import jitter_matrix, replicate_black_border
from trainers.verification import read_pairs
from trainers.whole_file import whole_file
from trainers.zips import SEED, ImageZip, row_points

LFW_BOX = box_from_interocular(128, 33.0, 0.42)  # the pictures are centred on the face
LFW_MEETS = 0.60  # mean teacher cosine from which a CelebA identity is taken for an LFW person
SMALLEST_SCENE_FACE = 48  # px, longer side of the box
LOSSES = ("arcface", "ce")
IDENTITY = number("identity", 0, math.inf, int)
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


def utkface_part(name: str) -> str:
    """train, val or test: 80/10/10 by the hash of the file name."""
    return {8: "val", 9: "test"}.get(int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10, "train")


def is_validation(identity: int) -> bool:
    return identity % 10 == 7


def check_labels(config: RecognitionConfig) -> None:
    """Raises MienError for a zip that is not there and for wrong labels, before any picture is looked at."""
    if config.labelled:
        with ImageZip(config.data, "celeba_faces") as data:
            celeba_rows(data)
    if not config.teacher:
        return
    for name, read in (("mtfl", mtfl_rows), ("scenes", scene_rows)):
        with ImageZip(config.data, name) as data:
            read(data)
    for name in ("utkface", "expw", "emotion_masked", *(["lfw"] if config.labelled else [])):
        with ImageZip(config.data, name):
            pass


def celeba_rows(data: ImageZip) -> list[dict[str, str]]:
    """The rows of the training identities."""
    checked = checked_rows(data, (IDENTITY, *FIVE_POINTS))
    rows = [row for row in checked if not is_validation(int(row["identity"]))]
    if (people := len({row["identity"] for row in rows})) < 2:
        raise MienError(
            f"{data.path}: {people} identities to train on, those that end in 7 being held out; it needs two or more"
        )
    return rows


def celeba_faces(config: RecognitionConfig) -> tuple[list[Image], list[int]]:
    """Aligned crops and identities of the training identities."""
    with ImageZip(config.data, "celeba_faces") as data:
        rows = celeba_rows(data)[: config.limit or None]
        crops = aligned_crops(data, rows)
    return crops, [int(row["identity"]) for row in rows]


def aligned_crops(data: ImageZip, rows: list[dict[str, str]], filled: bool = False) -> list[Image]:
    """Each picture, its black border `filled`, aligned by its row's landmarks.

    Raises MienError naming every picture that cannot be used.
    """
    points = [row_points(row) for row in rows]
    images = pictures(data, [row["file"] for row in rows], points)
    return [
        stored_crop(replicate_black_border(i) if filled else i, p)
        for i, p in zip(images, points, strict=True)
    ]


def mtfl_rows(data: ImageZip) -> list[dict[str, str]]:
    """The training rows without LFW's people."""
    rows = checked_rows(data, (*FIVE_POINTS, word("split", "train", "val", "test")))
    return [r for r in rows if r["split"] == "train" and not r["file"].startswith("lfw_5590")]


def unlabelled_faces(config: RecognitionConfig, finder: FaceFinder) -> list[Image]:
    """Aligned crops of MTFL (without LFW's people), UTKFace's training part, ExpW, AffectNet's and the scenes'."""
    with ImageZip(config.data, "mtfl") as data:
        rows = mtfl_rows(data)[: config.limit or None]
        crops = aligned_crops(data, rows, filled=True)
    for name, interocular, height in (
        ("utkface", 43.0, 0.36),
        ("expw", 32.0, 0.4),
        ("emotion_masked", 43.0, 0.36),
    ):
        with ImageZip(config.data, name) as data:
            names = [n for n in data.names() if name != "utkface" or utkface_part(n) == "train"]
            for images in batched(pictures(data, names[: config.limit or None])):
                guess = box_from_interocular(images[0].shape[0], interocular, height)
                points, sure = finder.refine(images, np.tile(guess, (len(images), 1)))
                crops += [stored_crop(i, p) for i, p, c in zip(images, points, sure, strict=True) if c > 0.6]
    return crops + scene_faces(config)


def scene_faces(config: RecognitionConfig) -> list[Image]:
    """Aligned crops of the larger faces in the detector's training scenes; its portraits are CelebA's people."""
    with ImageZip(config.data, "scenes") as data:
        return aligned_crops(data, scene_rows(data)[: config.limit or None])


def scene_rows(data: ImageZip) -> list[dict[str, str]]:
    """SCRFD's sure and large faces in the training scenes, portraits left out."""

    def landmarks(row: Mapping[str, str]) -> str:
        return first_wrong(row, FIVE_POINTS) if row.get("origin") == "scrfd" else ""

    held_out = is_held_out(data.names())
    rows = [
        row
        for row in checked_rows(data, (*SCENE, landmarks), suffix=".webp")
        if row["origin"] == "scrfd" and not held_out[row["file"]] and not row["file"].startswith("portrait")
    ]
    return [
        row for row in rows if float(row["score"] or 1) >= 0.5 and longer_side(row) >= SMALLEST_SCENE_FACE
    ]


def longer_side(row: Mapping[str, str]) -> float:
    return max(float(row["x2"]) - float(row["x1"]), float(row["y2"]) - float(row["y1"]))


def lfw_faces(config: RecognitionConfig, finder: FaceFinder) -> dict[str, Image]:
    """Aligned crops of the images in LFW's pairs, by file name: for evaluation, and to know whom not to train on."""
    with ImageZip(config.data, "lfw") as data:
        pairs, _, _ = read_pairs(data)
        names = sorted({name for pair in pairs for name in pair})
        names = names[: config.limit] if config.limit else names
        crops: list[Image] = []
        for images in batched(pictures(data, names)):
            points, _ = finder.refine(images, np.tile(LFW_BOX, (len(images), 1)))
            crops += [stored_crop(i, p) for i, p in zip(images, points, strict=True)]
    return dict(zip(names, crops, strict=True))


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
            identity = F.cross_entropy(self.head(embedding[known], label[known], share), label[known])
            total, figures["identity"] = total + self.identity_weight * identity, identity.detach()
        return total, figures


def keep_as_is(network: FaceResNet, layers: int) -> None:
    """The trunk's first layers learn no more: neither their weights nor what their batch norms have seen."""
    if not 0 <= layers < len(network.trunk):
        raise UsageError(f"frozen={layers}: the trunk has {len(network.trunk)} layers; freeze fewer")
    for layer in list(network.trunk)[:layers]:  # a slice of it would be another trunk
        layer.requires_grad_(False).eval()


def first_network(config: RecognitionConfig) -> FaceResNet:
    """What training begins with. Raises UsageError where layers are to be frozen that are not there or know nothing."""
    if not config.start and config.frozen:
        raise UsageError(f"frozen={config.frozen}: layers that have learnt nothing; name weights with start=")
    network = FaceResNet(config.embedding_size)
    if config.start:
        network = load_checkpoint(Path(config.start))[0].train()
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
