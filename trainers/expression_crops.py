"""Aligned crops of labelled pictures, made once and kept in the run's folder; and how training changes them."""

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from engines.errors import MienError
from engines.geometry import Image
from engines.largest_face import face_crop, largest_face
from engines.machine import why_no_gpu
from engines.runtime import WEIGHTS, load_engine
from trainers.attribute_sets import attribute_stored_crop, black_background_crop, fill_black
from trainers.expression_data import FOLDERS, Picture, refuse
from trainers.faces import ROOM, STORED_SIZE, FaceFinder, batched, stored_box
from trainers.held import Draw
from trainers.transforms import occlude, photometric
from trainers.whole_file import whole_file
from trainers.zips import ImageZip, decoded, file_stamp

CUT = 2  # how crops are cut; of another number they are made anew
FILLED = 0.75  # of the black backgrounds
FRAMED = 0.08  # of the other pictures, which get one
MIRROR = np.array([[-1.0, 0.0, 111.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
SMALLEST = 112  # px: smaller pictures are enlarged before their landmarks are found
Reader = Callable[[str], Image]


def aligned(where: str, pictures: Sequence[Picture], run: Path) -> np.ndarray:
    """(M, 144, 144, 3) uint8 BGR stored attribute crops, memory-mapped from a file in `run`.

    Raises MienError that names every picture that cannot be read.
    """
    weights = json.loads((WEIGHTS / "landmarks" / "spec.json").read_text(encoding="utf-8"))["weights_sha256"]
    key = json.dumps([CUT, where, weights, [(p.source, p.name) for p in pictures], stamps(where, pictures)])
    kept = run / f"crops-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npy"
    if not kept.is_file():
        shape = (len(pictures), STORED_SIZE, STORED_SIZE, 3)
        with whole_file(kept) as file:
            crops = np.lib.format.open_memmap(file.name, "w+", np.uint8, shape)
            align_into(crops, where, pictures)
            crops.flush()
    return np.load(kept, mmap_mode="r")


def stamps(where: str, pictures: Sequence[Picture]) -> list[list[int]]:
    """What tells each picture from another of its name."""
    with contextlib.ExitStack() as files:
        sources = {picture.source for picture in pictures} - {FOLDERS}
        zips = {source: files.enter_context(ImageZip(where, source)) for source in sources}
        return [
            zips[p.source].stamp(p.name) if p.source in zips else file_stamp(Path(where) / p.name)
            for p in pictures
        ]


def align_into(crops: np.ndarray, where: str, pictures: Sequence[Picture]) -> None:
    """Fill (M, 144, 144, 3) with the stored crop of every picture."""
    by_source = defaultdict(list)
    for i, picture in enumerate(pictures):
        by_source[picture.source].append(i)
    problems: list[str] = []
    for source, indices in by_source.items():
        align = _align_folders if source == FOLDERS else _align_zip
        for i, crop in align(where, source, [(i, pictures[i].name) for i in indices], problems):
            crops[i] = crop
    refuse(where, problems)


def _align_zip(
    where: str, source: str, files: list[tuple[int, str]], problems: list[str]
) -> Iterator[tuple[int, Image]]:
    finder = FaceFinder()
    cut = black_background_crop if source == "emotion_masked" else attribute_stored_crop
    with ImageZip(where, source) as data:
        for batch in batched(files):
            images = list(_readable(batch, data.image, problems))
            if not images:
                continue
            large = [_at_least(image, SMALLEST) for _, image in images]
            boxes = np.stack([stored_box(source, image.shape[0]) for image in large])
            points, _ = finder.refine(large, boxes)
            for (i, _), image, five in zip(images, large, points, strict=True):
                yield i, cut(image, five)


def _align_folders(
    where: str, _: str, files: list[tuple[int, str]], problems: list[str]
) -> Iterator[tuple[int, Image]]:
    backend = "auto" if why_no_gpu() else "eager"  # as FaceFinder has it
    detector = load_engine("detector", backend=backend, size=(640, 640))
    landmarks = load_engine("landmarks", backend=backend)
    for i, image in _readable(files, lambda name: read_file(Path(where) / name), problems):
        points = largest_face(detector, landmarks, image)
        if points is None:
            yield i, cv2.copyMakeBorder(face_crop(image, None), *[ROOM] * 4, cv2.BORDER_REPLICATE)
        else:
            yield i, attribute_stored_crop(image, points)


def _readable(
    files: Sequence[tuple[int, str]], read: Reader, problems: list[str]
) -> Iterator[tuple[int, Image]]:
    for i, name in files:
        try:
            image = read(name)
        except (MienError, KeyError, OSError) as error:
            problems.append(f"{name}: {error}" if name not in str(error) else str(error))
        else:
            yield i, image


def read_file(path: Path) -> Image:
    """HxWx3 uint8 BGR. Raises MienError for what is no image."""
    image = decoded(path.read_bytes())
    if image is None:
        raise MienError(f"{path.name} is not an image that OpenCV can read")
    return image


def _at_least(image: Image, side: int) -> Image:
    if image.shape[0] >= side:
        return image
    size = (round(image.shape[1] * side / image.shape[0]), side)
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)


def inner(crop: np.ndarray) -> Image:
    """The 112x112 attribute crop of a stored one."""
    return np.ascontiguousarray(crop[..., ROOM:-ROOM, ROOM:-ROOM, :])


def changed(rng: np.random.Generator, stored: Image, masked: bool) -> Image:
    """112x112x3 training crop: flip, turned up to 10 degrees, scaled, sheared, in perspective, recoloured, degraded.

    A black background (`masked`) is mostly filled with texture, and other pictures get one at times, so
    that the mask tells nothing.
    """
    crop = cv2.warpPerspective(
        stored, _warp_matrix(rng), (112, 112), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    ).astype(np.uint8, copy=False)
    if masked and rng.random() < FILLED:
        crop = fill_black(rng, crop)
    elif not masked and rng.random() < FRAMED:
        crop = _blacked_out(rng, crop)
    if rng.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    return occlude(rng, photometric(rng, crop, 0.8), chance=0.1)


def draw_changed(
    rng: np.random.Generator, rows: np.ndarray, masked: np.ndarray, targets: tuple[np.ndarray, ...]
) -> Draw:
    """`changed` of the held stored crops `rows` (B,), a batch; the `masked` (B,) get no frame."""
    count = len(rows)
    matrices = np.stack([_warp_matrix(rng) for _ in range(count)])
    turned = rng.random(count) < 0.5
    matrices[turned] = MIRROR @ matrices[turned]
    ovals = rng.uniform((40, 50, np.radians(-8)), (54, 66, np.radians(8)), (count, 3))
    ovals[masked | (rng.random(count) >= FRAMED)] = 0
    return Draw(rows, matrices.astype(np.float32), 112, 0.8, 0.1, targets, frames=ovals.astype(np.float32))


def filled(rng: np.random.Generator, crops: np.ndarray) -> np.ndarray:
    """Crops (M, 144, 144, 3) whose blacked-out background has a texture."""
    return np.stack([fill_black(rng, crop) for crop in crops]) if len(crops) else crops


def _warp_matrix(rng: np.random.Generator) -> np.ndarray:
    """3x3 map from a stored crop to the training crop."""
    angle, shear = np.radians(rng.uniform(-10, 10)), np.radians(rng.uniform(-5, 5))
    scale = np.exp(rng.uniform(-0.12, 0.12))
    turn = np.array([[np.cos(angle), -np.sin(angle + shear)], [np.sin(angle), np.cos(angle + shear)]]) * scale
    centre, shift = (STORED_SIZE - 1) / 2, rng.uniform(-0.04, 0.04, 2) * 112
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = centre + shift - turn @ [centre, centre] - ROOM
    if rng.random() < 0.3:
        tilt = np.eye(3)
        tilt[2, :2] = rng.uniform(-0.15, 0.15, 2) / 112
        tilt[2, 2] = 1 - tilt[2, :2].sum() * 56
        matrix = tilt @ matrix
    return matrix


def _blacked_out(rng: np.random.Generator, crop: Image) -> Image:
    """An ellipse about the size of a face stays; around it, black."""
    mask = np.zeros(crop.shape[:2], np.uint8)
    axes = (int(rng.uniform(40, 54)), int(rng.uniform(50, 66)))
    cv2.ellipse(mask, (56, 60), axes, float(rng.uniform(-8, 8)), 0, 360, 1, -1)
    return crop * mask[..., None]
