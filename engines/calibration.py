"""Real faces as each model is fed them: the batch an engine is proved on, and crops that int8 ranges come from.

The faces are those of the shipped portraits (engines/faces), or of a folder of pictures that the user gives.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.errors import MienError
from engines.geometry import (
    Floats,
    Image,
    attribute_crop,
    landmark_crop,
    letterbox,
    recognition_crop,
    transform_points,
)
from engines.manifest import MANIFEST_FILE

FACES_FILE = Path(__file__).parent / "faces" / "faces.npz"
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
NUM_CROPS = 96
MOST_PICTURES = 300  # of a user's folder, all held at once; NNCF, too, measures ranges on as many by default
LONGEST = 1024  # px of a user's picture


@dataclass(frozen=True, slots=True)
class FacePicture:
    """One picture of one face: landmarks (5, 2) and box_xyxy (4,) in its px."""

    image: Image
    landmarks: Floats
    box_xyxy: Floats


def shipped_faces() -> list[FacePicture]:
    """Two public-domain portraits, 224x224."""
    with np.load(FACES_FILE, allow_pickle=False) as stored:
        return [
            FacePicture(*each)
            for each in zip(stored["pictures"], stored["landmarks"], stored["boxes_xyxy"], strict=True)
        ]


def parity_batch(task: str, size: tuple[int, int], room: int = 0) -> NDArray[np.uint8]:
    """The shipped faces, plain and mirrored, as the task's model is fed them: (4, H, W, 3) uint8; always the same.

    `room` is the spec's, here and below.
    """
    faces = shipped_faces()
    return np.stack([crop(task, each, size, room) for face in faces for each in (face, mirrored(face))])


def calibration_batch(
    task: str, size: tuple[int, int], folder: Path | None = None, room: int = 0, cache: Path | None = None
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """(N, H, W, 3) uint8 crops, varied in pose, light and sharpness, and what the manifest says of them.

    `cache` keeps the engines that find a folder's faces.
    """
    faces = faces_of(folder, cache) if folder else shipped_faces()
    rng = np.random.default_rng(281)
    count = max(NUM_CROPS, len(faces))
    crops = np.stack([crop(task, varied(faces[i % len(faces)], rng), size, room) for i in range(count)])
    told = {
        "pictures": str(folder.absolute()) if folder else "the shipped portraits",
        "faces": len(faces),
        "crops": len(crops),
        "sha256": hashlib.sha256(crops.tobytes()).hexdigest(),
    }
    return crops, told


def calibrated_before(engine: Path) -> Path | None:
    """The user's folder that the engine in a cache's folder was to be calibrated on; None for the shipped portraits.

    Of any version's manifest: engines are built anew just when that is another's.
    """
    try:
        told = json.loads((engine / MANIFEST_FILE).read_text(encoding="utf-8"))["calibration"]
        folder = Path(told.get("wanted") or told.get("pictures", ""))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return folder if folder.is_absolute() else None


def calibration_as_before(
    task: str, size: tuple[int, int], before: Path | None, room: int, cache: Path
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """As `calibration_batch`, on the folder of last time; on the shipped portraits where it gives no face now.

    Why it does not is said as `lost`, and the folder stays the `wanted` one.
    """
    try:
        return calibration_batch(task, size, before, room, cache)
    except (MienError, OSError) as error:
        if before is None:
            raise
        crops, told = calibration_batch(task, size, None, room)
        return crops, told | {"wanted": str(before), "lost": f"it was on {before} before ({error})"}


def faces_of(folder: Path, cache: Path | None = None) -> list[FacePicture]:
    """The best face of each picture in a folder, or of some evenly chosen. Raises MienError where there is none."""
    from engines.runtime import load_engine
    from engines.stages import detect, find_landmarks

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise MienError(f"{folder}: no pictures to calibrate on ({', '.join(PICTURES)})")
    if len(paths) > MOST_PICTURES:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, MOST_PICTURES).astype(int)]
    detector, landmarks = (
        load_engine(model, backend="openvino", precision="f32", cache=cache)
        for model in ("detector", "landmarks")
    )
    found = []
    for path in paths:
        picture = _read(path)
        if picture is None:
            continue
        image = _at_most(picture, LONGEST)
        boxes = detect(detector, [image])[0].boxes_xyxy[:1]
        if len(boxes):
            points, _ = find_landmarks(landmarks, [image], boxes)
            found.append(FacePicture(image, points[0], boxes[0]))
    if not found:
        raise MienError(f"{folder}: no face found in {len(paths)} pictures; give some with clear faces")
    return found


def _read(path: Path) -> Image | None:
    """None for what is no picture, or cannot be read; OpenCV itself ends the process on a name that is no UTF-8."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError:
        return None
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    return None if picture is None else picture.astype(np.uint8, copy=False)


def _at_most(image: Image, side: int) -> Image:
    """Shrunk where it is larger: all pictures of a folder are held at once."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(
        np.uint8, copy=False
    )


def crop(task: str, face: FacePicture, size: tuple[int, int], room: int = 0) -> Image:
    """What the task's model gets of a face, at (width, height) `size`."""
    if task == "detector":
        return letterbox(_scaled_to(face.image, size), size)[0]
    if task == "landmarks":
        cut = landmark_crop(face.image, face.box_xyxy)[0]
    elif task == "embedder":
        cut = recognition_crop(face.image, face.landmarks)
    else:
        cut = attribute_crop(face.image, face.landmarks, size[0], room)
    same = cut.shape[1::-1] == tuple(size)
    return cut if same else cv2.resize(cut, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def _scaled_to(image: Image, size: tuple[int, int]) -> Image:
    """The picture as high as a detector's canvas, so that its face is found at any size."""
    scale = min(size[0] / image.shape[1], size[1] / image.shape[0])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def mirrored(face: FacePicture) -> FacePicture:
    """Left and right exchanged, landmarks in the image's order again."""
    width = face.image.shape[1]
    points = face.landmarks[[1, 0, 2, 4, 3]].copy()
    points[:, 0] = width - 1 - points[:, 0]
    x1, y1, x2, y2 = face.box_xyxy
    box = np.array([width - 1 - x2, y1, width - 1 - x1, y2], np.float32)
    image: Image = np.ascontiguousarray(face.image[:, ::-1])
    return FacePicture(image, points, box)


def varied(face: FacePicture, rng: np.random.Generator) -> FacePicture:
    """Mirrored or not; turned by up to 15 degrees, 0.7 to 1.2 times as large; darker, brighter, tinted, blurred."""
    face = mirrored(face) if rng.random() < 0.5 else face
    height, width = face.image.shape[:2]
    angle, scale = float(rng.uniform(-15, 15)), float(rng.uniform(0.7, 1.2))
    centre = (float(face.box_xyxy[::2].mean()), float(face.box_xyxy[1::2].mean()))
    matrix = cv2.getRotationMatrix2D(centre, angle, scale).astype(np.float32)
    matrix[:, 2] += rng.uniform(-4, 4, 2).astype(np.float32)
    image = cv2.warpAffine(face.image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    corners = face.box_xyxy[[0, 1, 2, 1, 0, 3, 2, 3]].reshape(4, 2)
    moved = transform_points(corners.astype(np.float32), matrix)
    light = image.astype(np.float32) / 255
    light = light ** float(rng.uniform(0.6, 1.7)) * rng.uniform(0.85, 1.1, 3).astype(np.float32)
    if rng.random() < 0.4:
        light = cv2.GaussianBlur(light, (0, 0), float(rng.uniform(0.5, 2.0))).astype(np.float32)
    box = np.concatenate((moved.min(0), moved.max(0))).astype(np.float32)
    noise = rng.normal(0, rng.uniform(0, 6), light.shape)
    noisy: Image = np.clip(light * 255 + noise, 0, 255).astype(np.uint8)
    return FacePicture(noisy, transform_points(face.landmarks, matrix), box)
