"""Tiny training sets in the real layouts, drawn from the two public-domain portraits."""

import csv
import io
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np

WORDS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
SAMPLES = Path(__file__).parents[1] / "samples"
# Eyes, nose, mouth corners in the shipped portraits, the image's left first.
PORTRAITS = {
    "grace_hopper.jpg": [[227, 178], [297, 179], [262, 224], [234, 255], [288, 256]],
    "eileen_collins.jpg": [[200, 112], [240, 106], [224, 131], [205, 148], [244, 144]],
}


def face(
    rng: np.random.Generator, size: int, interocular: float, eye_height: float
) -> tuple[np.ndarray, np.ndarray]:
    """One of the two, jittered, in a size x size picture; and its five landmarks."""
    name = sorted(PORTRAITS)[int(rng.integers(len(PORTRAITS)))]
    image = cv2.imread(str(SAMPLES / name))
    points = np.array(PORTRAITS[name], np.float32)
    scale = interocular / np.linalg.norm(points[0] - points[1]) * rng.uniform(0.95, 1.05)
    shift = np.array([size / 2, size * eye_height]) - points[:2].mean(0) * scale + rng.uniform(-2, 2, 2)
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32)
    picture = cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8), points * scale + shift


def write_zip(
    path: Path, pictures: dict[str, np.ndarray], rows: list[dict], texts: dict[str, str] | None = None
) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, picture in pictures.items():
            archive.writestr(name, cv2.imencode(".webp", picture)[1].tobytes())
        for name, text in (texts or {}).items():
            archive.writestr(name, text)
        if rows:
            out = io.StringIO()
            writer = csv.DictWriter(out, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
            archive.writestr("labels.csv", out.getvalue())


def point_columns(points: np.ndarray) -> dict[str, float]:
    names = [f"{p}{axis}" for p in ("le", "re", "n", "lm", "rm") for axis in "xy"]
    return dict(zip(names, (round(float(v), 2) for v in points.reshape(-1)), strict=True))


def write_scenes(folder: Path, rng: np.random.Generator, n: int = 16) -> None:
    """Each before a wall of its own, so that none is a near-duplicate of another."""
    pictures, rows, walls = {}, [], np.random.default_rng(7)
    for i in range(n):
        grey = rng.integers(60, 190) + walls.integers(-30, 31, (5, 7, 1)).repeat(3, 2)
        picture = cv2.resize(grey.astype(np.uint8), (300, 200))
        side = int(rng.integers(60, 120))
        picture[40 : 40 + side, 80 : 80 + side], _ = face(rng, side, side * 0.33, 0.42)
        name = f"web_{i:03d}.webp"
        pictures[name] = picture
        box = {"x1": 80 + side * 0.15, "y1": 40 + side * 0.1, "x2": 80 + side * 0.85, "y2": 40 + side * 0.95}
        for origin, score in (("scrfd", 0.8), ("yunet", 0.9)):
            rows.append(
                {"file": name, "origin": origin, "score": score, **box, **point_columns(np.zeros((5, 2)))}
            )
    write_zip(folder / "scenes.zip", pictures, rows)


def write_mtfl(folder: Path, rng: np.random.Generator, n: int = 14) -> None:
    pictures, rows = {}, []
    for i in range(n):
        name = f"net_{i:03d}.webp"
        pictures[name], points = face(rng, 160, 26, 0.42)
        box = {"bx1": 44, "by1": 44, "bx2": 116, "by2": 116}
        part = {"split": "val", "gender": ""} if i % 3 == 0 else {"split": "train", "gender": 1 + i % 2}
        rows.append({"file": name, **part, **box, **point_columns(points)})
    write_zip(folder / "mtfl.zip", pictures, rows)


def write_identities(folder: Path, rng: np.random.Generator, n: int = 24) -> None:
    pictures, rows = {}, []
    for i in range(n):
        name = f"{i:06d}.webp"
        pictures[name], points = face(rng, 128, 25, 0.45)
        rows.append({"file": name, "identity": (11, 12, 17, 27)[i % 4], **point_columns(points)})
    write_zip(folder / "celeba_faces.zip", pictures, rows)
    people = {
        f"{person}_{k:04d}.webp": face(rng, 128, 30, 0.42)[0] for person in ("Ann", "Bo") for k in (1, 2)
    }
    pairs = "2\t1\nAnn\t1\t2\nAnn\t1\tBo\t1\nBo\t1\t2\nAnn\t2\tBo\t2\n"
    write_zip(folder / "lfw.zip", people, [], {"pairs.txt": pairs})


def write_attributes(folder: Path, rng: np.random.Generator, n: int = 40) -> None:
    names = [f"{20 + i}_{i % 2}_0_{i}.webp" for i in range(n)]
    aged = [{"file": name, "age_years": 20 + i, "gender": i % 2, "race": 0} for i, name in enumerate(names)]
    write_zip(folder / "utkface.zip", {name: face(rng, 112, 43, 0.3)[0] for name in names}, aged)
    emotions = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
    votes = [
        {
            "path": f"fer{i}.webp",
            "usage": ("Training", "PublicTest", "PrivateTest")[i % 3],
            "dup_of": "",
            "unknown": 0,
            **{f"v_{e}": 8 if k == i % 8 else 0 for k, e in enumerate(emotions)},
        }
        for i in range(n)
    ]
    grey = {row["path"]: cv2.resize(face(rng, 112, 42, 0.38)[0], (48, 48)) for row in votes}
    write_zip(folder / "ferplus.zip", grey, votes)
    for name, size, interocular, height in (("emotion_masked", 112, 43, 0.32), ("expw", 128, 32, 0.45)):
        rows = [{"file": f"{name}_{i}.webp", "emotion": word} for i, word in enumerate((*WORDS, "happy"))]
        write_zip(
            folder / f"{name}.zip", {r["file"]: face(rng, size, interocular, height)[0] for r in rows}, rows
        )


def ffhq_label(rng: np.random.Generator, i: int) -> list[dict]:
    """One face as the published FFHQ JSON has it, cut to what is read."""
    emotions = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
    share = {name: 0.9 if k == 4 + i % 2 else 0.1 / 7 for k, name in enumerate(emotions)}
    gender = ("female", "male")[i % 2]
    return [
        {
            "faceId": f"{i}",
            "faceAttributes": {"age": float(rng.integers(5, 70)), "gender": gender, "emotion": share},
        }
    ]


def write_ffhq(folder: Path, rng: np.random.Generator, n: int = 40) -> None:
    pictures = {f"thumbnails/{i:05d}.webp": face(rng, 256, 64, 0.46)[0] for i in range(n)}
    labels = {f"json/{i:05d}.json": json.dumps(ffhq_label(rng, i)) for i in range(n)}
    write_zip(folder / "ffhq.zip", pictures, [], labels)


def write_all(folder: Path) -> None:
    rng = np.random.default_rng(281)
    for write in (write_scenes, write_mtfl, write_identities, write_attributes, write_ffhq):
        write(folder, rng)
