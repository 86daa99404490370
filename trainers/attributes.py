"""Recipe `attributes`: age, gender and emotion from one trunk, each set teaching the heads it has labels for."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.checkpoint import load_checkpoint
from engines.errors import UsageError
from engines.geometry import FACE_SIZE, Floats, Image
from engines.networks import AttributesNet, FaceResNet
from trainers.attribute_sets import (
    UNKNOWN,
    LabelledFaces,
    check_labels,
    ferplus,
    ffhq,
    fill_black,
    hard_labelled,
    mtfl,
    utkface,
)
from trainers.attribute_teacher import AttributesTeacher
from trainers.batched_changes import LEVELS
from trainers.calibration import check_held_out
from trainers.faces import FaceFinder, jittered, jittered_maps
from trainers.fit import SMALLEST, FitOptions, RandomSamples, Recipe, check_small, fit, image_batch
from trainers.held import Draw
from trainers.zips import SEED

PLACE = 16  # px of the crop from one weight of the trunk's last pool to the next
SETS = ("utkface", "ferplus", "mtfl", "emotion_masked", "expw", "ffhq")
# How often a set is drawn for every face of UTKFace, and what its labels count.
SHARE_AND_WEIGHT = {
    "utkface": (1.0, 1.0),
    "mtfl": (0.3, 1.0),
    "emotion_masked": (0.3, 0.4),
    "expw": (0.15, 0.4),
    "ffhq": (0.06, 0.5),
}
FER_SIZE = 48 / 112  # FER+ pictures were this small before they were enlarged
AGE_SIGMA = 2.5  # years: how sharply a labelled age is meant


@dataclass(frozen=True, slots=True)
class AttributesConfig:
    data: str = "data"
    run: str = "runs/attributes"
    start: str = ""  # an embedder or attributes checkpoint to start from; none: from scratch
    learn_from: str = ""  # an attributes checkpoint: its answers are learnt beside labels of age and gender
    limit: int = 0  # images used of each set; 0 is all
    sets: str = ",".join(SETS)
    input_size: int = FACE_SIZE  # px of the crop, a multiple of 16; 80 takes half the time
    age_bins: int = 101  # years of the age distribution; 0: one number, by L1
    small: int = 0  # px: side of the images in the first part of training, which is faster; 0: as input_size
    small_share: float = 0.6  # how large that part is, of batches or of time
    fer_share: float = 1.5  # how often FER+ is drawn for every face of UTKFace
    mixup: float = 0.2  # how evenly two faces whose emotion alone is known are mixed; 0: they are not
    fit: FitOptions = field(
        default_factory=lambda: FitOptions(
            epochs=120, steps_per_epoch=100, batch_size=64, learning_rate=1.5e-3, weight_decay=0.02
        )
    )


class AttributeSamples(RandomSamples):
    """A face of one set, drawn by the set's share: image (S, S, 3), age, female, emotion (8,), weight, answers.

    The answers (Y + 1,) are a teacher's, all UNKNOWN where it was not asked; (0,) without one.

    Half the colour pictures are turned grey and half shrunk towards the size of FER+, so that the look of
    a set does not tell which question will be asked.
    """

    def __init__(
        self, sets: list[LabelledFaces], size: int, teacher: AttributesTeacher | None = None
    ) -> None:
        super().__init__(sum(len(s) for s in sets))
        self.sets, self.size = sets, size
        self.answers = [answers_for(faces, teacher) for faces in sets]
        self.held: list[np.ndarray] | None = None
        shares = np.array([s.share for s in sets])
        self.shares = shares / shares.sum()

    def sample(
        self, rng: np.random.Generator
    ) -> tuple[Image, np.float32, np.float32, Floats, np.float32, Floats]:
        k = int(rng.choice(len(self.sets), p=self.shares))
        faces = self.sets[k]
        i = int(rng.integers(len(faces)))
        crop = faces.crops[i]
        crop = like_another_set(rng, fill_black(rng, crop) if faces.masked else crop)
        crop = jittered(rng, crop, degrees=10, scale=0.1, size=self.size)
        weight = np.float32(faces.weight)
        return crop, faces.age[i], faces.female[i], faces.emotion[i], weight, self.answers[k][i]

    def pictures(self) -> list[np.ndarray]:
        """All sets', one after the other; background that was blacked out is filled once."""
        if self.held is None:
            rng = np.random.default_rng(SEED)
            self.held = [
                np.stack([fill_black(rng, crop) for crop in faces.crops]) if faces.masked else faces.crops
                for faces in self.sets
            ]
        return self.held

    def draw(self, rng: np.random.Generator, count: int, first: int = 0) -> Draw:
        """Each row's set by its share, then a face of it."""
        sets = rng.choice(len(self.sets), size=count, p=self.shares)
        lengths = np.array([len(faces) for faces in self.sets])
        inside = (rng.random(count) * lengths[sets]).astype(int)
        pairs = list(zip((self.sets[k] for k in sets), inside, strict=True))
        age, female = (np.float32([getattr(f, name)[i] for f, i in pairs]) for name in ("age", "female"))
        emotion = np.stack([faces.emotion[i] for faces, i in pairs])
        weight = np.float32([faces.weight for faces, _ in pairs])
        answers = np.stack([self.answers[k][i] for k, i in zip(sets, inside, strict=True)])
        return Draw(
            rows=inside + (np.cumsum(lengths) - lengths)[sets],
            matrices=jittered_maps(rng, count, degrees=10, scale=0.1, size=self.size),
            size=self.size,
            strength=0.8,
            hidden=0.1,
            targets=(age, female, emotion, weight, answers),
            grey=rng.random(count) < 0.5,
            coarse=np.where(rng.random(count) < 0.5, rng.integers(0, LEVELS, count), -1),
        )


def answers_for(faces: LabelledFaces, teacher: AttributesTeacher | None) -> Floats:
    """What the teacher makes of those whose age or gender is labelled; UNKNOWN for others; (M, 0) without a teacher."""
    if not teacher:
        return np.empty((len(faces), 0), np.float32)
    found = np.full((len(faces), teacher.age_bins + 1), UNKNOWN, np.float32)
    asked = (faces.age >= 0) | (faces.female >= 0)
    if asked.any():
        found[asked] = teacher(faces.crops[asked])
    return found


def like_another_set(rng: np.random.Generator, crop: Image) -> Image:
    """At times grey, at times as coarse as a 48 px picture that was enlarged."""
    if rng.random() < 0.5:
        crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if rng.random() < 0.5:
        factor = FER_SIZE * float(np.exp(rng.uniform(-0.2, 0.6)))
        small = cv2.resize(crop, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        crop = cv2.resize(small, crop.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return crop.astype(np.uint8, copy=False)


def age_distribution(age: Tensor, bins: int) -> Tensor:
    """Ages (B,) -> normal distributions over 0 .. bins - 1 years (B, bins). Gao et al. 2018, "DLDL-v2", sec. 3.1."""
    years = torch.arange(bins, device=age.device)
    return (-((years - age[:, None]) ** 2) / (2 * AGE_SIGMA**2)).softmax(1)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum()


def mixed(images: Tensor, votes: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Each picture and its votes with some of the next one's: at most half. Zhang et al. 2018, "mixup", sec. 2."""
    share = torch.distributions.Beta(alpha, alpha).sample((len(images),)).to(images)
    other = torch.minimum(share, 1 - share)[:, None]
    return images.lerp(images.roll(1, 0), other[:, :, None, None]), votes.lerp(votes.roll(1, 0), other)


class AttributesRecipe(Recipe):
    """Age: cross-entropy on its distribution and L1 in decades; gender: cross-entropy; emotion: on the votes.

    Every head is taught by the faces that have its label, each by its set's weight; age and gender by a teacher's
    answers besides, where it was asked.
    """

    network: AttributesNet

    def __init__(self, network: AttributesNet, options: FitOptions, mixup: float = 0.0) -> None:
        super().__init__(network, options)
        self.mixup = mixup

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        images, age, female, emotion, weight, answers = batch
        images = self.small_at_first(image_batch(images))
        if self.mixup:
            alone = (emotion[:, 0] >= 0) & (age < 0) & (female < 0)
            images[alone], emotion[alone] = mixed(images[alone], emotion[alone], self.mixup)
        age_output, gender_logit, emotion_logits = self.network.heads(images)
        total, figures = images.new_zeros((), dtype=torch.float), {}
        aged, told, judged = age >= 0, female >= 0, emotion[:, 0] >= 0
        if aged.any():
            loss, years = self.age_loss(age_output[aged].float(), age[aged])
            total = total + weighted_mean(loss, weight[aged])
            figures["mae"] = (years - age[aged]).detach().abs().mean()
        if told.any():
            logit = gender_logit[told].float()
            loss = F.binary_cross_entropy_with_logits(logit, female[told], reduction="none")
            total = total + weighted_mean(loss, weight[told])
            figures["gender"] = ((logit > 0) == (female[told] > 0.5)).float().mean()
        if judged.any():
            logits = emotion_logits[judged].float()
            loss = F.cross_entropy(logits, emotion[judged], reduction="none")
            total = total + weighted_mean(loss, weight[judged])
            figures["emotion"] = (logits.argmax(1) == emotion[judged].argmax(1)).float().mean()
        answered = answers[:, :1].flatten() >= 0
        if answered.any():
            logit = gender_logit[answered].float()
            loss = self.answer_loss(age_output[answered].float(), logit, answers[answered])
            total = total + weighted_mean(loss, weight[answered])
        return total, figures

    def age_loss(self, output: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each face (B,), and the years found (B,)."""
        years = self.network.years_of(output)
        loss = F.smooth_l1_loss(years / 10, age / 10, beta=0.3, reduction="none")
        if output.shape[1] > 1:
            wanted = age_distribution(age, output.shape[1])
            loss = loss + 0.5 * F.cross_entropy(output, wanted, reduction="none")
        return loss, years

    def answer_loss(self, output: Tensor, logit: Tensor, answers: Tensor) -> Tensor:
        """Loss (B,) of age logits (B, Y) and a logit of female (B,) against a teacher's answers (B, Y + 1)."""
        years, female = answers[:, :-1], answers[:, -1]
        meant = (years * self.network.years).sum(1)
        loss = F.smooth_l1_loss(self.network.years_of(output) / 10, meant / 10, beta=0.3, reduction="none")
        loss = loss + 0.5 * F.cross_entropy(output, years, reduction="none")
        return loss + F.binary_cross_entropy_with_logits(logit, female, reduction="none")


def start_from(network: AttributesNet, checkpoint: str, room: int = 0) -> None:
    """Copy an embedder's trunk, or of another attributes network what fits.

    The last pool of an input with `room` (px of 112 around the face) begins blind to what the start's did not see, and
    leaves out what only that saw; a larger input's is enlarged.
    """
    other, spec = load_checkpoint(Path(checkpoint))
    side = FACE_SIZE + 2 * spec.room  # of 112, that the start sees
    if not isinstance(other, FaceResNet | AttributesNet):
        raise UsageError(
            f"start={checkpoint}: {type(other).__name__} has no trunk that fits; name an embedder"
        )
    own = network.state_dict()
    for name, value in other.state_dict().items():
        if name not in own:
            continue
        of_places = value.ndim == 4 and value.shape[-1] > 3 and own[name].shape[:2] == value.shape[:2]
        if of_places and (own[name].shape != value.shape or room != spec.room):
            value = F.pad(value, (round((room - spec.room) * value.shape[-1] / side),) * 4)
            area = value.shape[-1] ** 2 / own[name].shape[-1] ** 2
            value = F.interpolate(value, own[name].shape[-2:], mode="bilinear", align_corners=False) * area
        if own[name].shape == value.shape:
            own[name] = value
    network.load_state_dict(own)


def load_sets(config: AttributesConfig, finder: FaceFinder) -> list[LabelledFaces]:
    """The training parts. Shares and weights: human labels first, AffectNet's and ExpW's as help, machine-made last."""
    wanted = config.sets.split(",")
    if unknown := [name for name in wanted if name not in SETS]:
        raise UsageError(f"sets={config.sets}: {unknown[0]!r} is none of {', '.join(SETS)}")
    check_labels(config.data, wanted)
    check_held_out(config.data)
    run = config.run
    read = {
        "utkface": lambda: utkface(config, "train", finder, run),
        "ferplus": lambda: ferplus(config, "train", finder, run),
        "mtfl": lambda: mtfl(config),
        "emotion_masked": lambda: hard_labelled(config, "emotion_masked", finder, run),
        "expw": lambda: hard_labelled(config, "expw", finder, run),
        "ffhq": lambda: ffhq(config, "train", finder, run),
    }
    worth = SHARE_AND_WEIGHT | {"ferplus": (config.fer_share, 1.0)}
    return [weighed(read[name](), *worth[name]) for name in wanted]


def weighed(faces: LabelledFaces, share: float, weight: float) -> LabelledFaces:
    return dataclasses.replace(faces, share=share, weight=weight)


def check_input_size(side: int) -> None:
    """Raises UsageError for a crop that the trunk cannot halve four times."""
    if side % PLACE or side < SMALLEST:
        raise UsageError(f"input_size={side}: must be a multiple of {PLACE}, from {SMALLEST} on")


def train(config: AttributesConfig) -> nn.Module:
    torch.manual_seed(config.fit.seed)
    check_input_size(config.input_size)
    if config.fer_share <= 0:
        raise UsageError(f"fer_share={config.fer_share}: must be above 0; sets= leaves a set out")
    check_small(config.small, config.input_size)
    teacher = None
    if config.learn_from:  # first: a wrong one is told before minutes of aligning
        teacher = AttributesTeacher(config.learn_from, config.age_bins)
    samples = AttributeSamples(load_sets(config, FaceFinder()), config.input_size, teacher)
    network = AttributesNet(age_bins=config.age_bins, input_size=config.input_size)
    if config.start:
        start_from(network, config.start)
    recipe = AttributesRecipe(network, config.fit, config.mixup)
    recipe.small, recipe.small_share = config.small, config.small_share
    return fit(recipe, samples, Path(config.run))
