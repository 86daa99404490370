"""A subset of a face set by criteria: selected.csv, train.csv and val.csv, and rejected.csv with the reasons."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from engines.errors import MienError, UsageError
from engines.geometry import Floats, Image, iou_matrix, recognition_crop
from engines.runtime import Engine, load_engine
from engines.stages import detect, find_landmarks
from trainers.face_rows import FaceRecord, read_records, write_csv, write_records
from trainers.layouts import FaceSource, MissingImage, UnreadableImage, open_faces
from trainers.zips import SEED

INNER = slice(16, 96)  # the part of a recognition crop that is face and not background
FEWEST = 5  # images of a person, where nothing else is said
NAMED = 5  # as many names as an error message or a summary gives
LOOSEST_IOU = 0.3  # between a labelled box and our detector's, which draws forehead to chin


@dataclass(frozen=True, slots=True)
class Criteria:
    """What is kept. 0 switches a criterion off."""

    persons: int = 0  # the most photographed first
    images: int = 0  # exactly so many of each person, drawn at random
    total: int = 0  # images of all persons together; the last person's are cut to fit
    min_images: int = 0  # persons with fewer that pass are left out; 0: as many as `images`, or 5
    min_interocular: float = 0.0  # px in the photograph
    min_sharpness: float = 0.0  # 0.3 is a photograph, 0.08 is blurred
    max_yaw: float = 0.0  # 0 is frontal, 0.6 about 30 degrees, 1 the nose over one eye
    min_score: float = 0.0  # the detector's; ours is run where the set has none
    val_share: float = 0.2
    without: str = ""  # a selected.csv whose persons are left out
    seed: int = SEED

    @property
    def enough(self) -> int:
        return max(self.images, self.min_images or (0 if self.images else FEWEST), 2)


@dataclass(slots=True)
class Selection:
    """What was kept, and why the rest was not: (file, person, reason)."""

    kept: list[FaceRecord] = field(default_factory=list)
    rejected: list[tuple[str, str, str]] = field(default_factory=list)
    short: list[tuple[str, int]] = field(default_factory=list)  # persons with too few images, and how many

    def reasons(self) -> Counter[str]:
        return Counter(reason for _, _, reason in self.rejected)


def select(data: Path, folder: Path, criteria: Criteria, backend: str = "auto") -> Selection:
    """Write the four lists into `folder`. Raises MienError when too few persons have enough images."""
    if not 0 < criteria.val_share < 1:
        raise UsageError(f"val-share {criteria.val_share}: a share between 0 and 1")
    least = criteria.persons * (criteria.images or criteria.enough)
    if 0 < criteria.total < least:
        raise UsageError(f"total {criteria.total}: {criteria.persons} persons have {least} images at least")
    with open_faces(data) as source:
        if source.records and not any(record.person for record in source.records):
            raise MienError(f"{data}: names no persons; CelebA's stand in identity_CelebA.txt")
        selection = choose(source, criteria, Looks(criteria, backend))
    persons = len({record.person for record in selection.kept})
    rejected = [dict(zip(("file", "person", "reason"), row, strict=True)) for row in selection.rejected]
    write_csv(folder / "rejected.csv", ("file", "person", "reason"), rejected)
    if not persons or persons < criteria.persons:
        raise MienError(too_few(data, folder, criteria, selection, persons))
    records = with_split(selection.kept, criteria)
    write_records(folder / "selected.csv", records)
    for split in ("train", "val"):
        write_records(folder / f"{split}.csv", [r for r in records if r.split == split])
    about = {
        "data": str(data),
        "persons": persons,
        "images": len(records),
        "criteria": dataclasses.asdict(criteria),
    }
    (folder / "selection.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return selection


def too_few(data: Path, folder: Path, criteria: Criteria, selection: Selection, persons: int) -> str:
    near = sorted(selection.short, key=lambda item: -item[1])[:NAMED]
    if criteria.total and len(selection.kept) >= criteria.total - 1:
        return (
            f"{data}: {criteria.total} images are of {persons} persons already, {criteria.persons} are asked for; "
            "give a larger total, or how many images of each"
        )
    names = (
        ", ".join(f"{person or '(no name)'} has {count}" for person, count in near) or "there are no others"
    )
    asked = f"{criteria.persons} are asked for" if criteria.persons else "at least one is needed"
    return (
        f"{data}: {persons} persons have {criteria.enough} images that pass, {asked}; the next: {names}. "
        f"Loosen a criterion; every image left out is in {folder / 'rejected.csv'}"
    )


def choose(source: FaceSource, criteria: Criteria, looks: "Looks") -> Selection:
    """Persons from the most photographed down, each looked at image by image until it has enough."""
    selection = Selection(rejected=[(file, "", reason) for file, reason in source.problems])
    left_out = {r.person for r in read_records(Path(criteria.without))} if criteria.without else set()
    by_person = grouped(source, criteria, left_out, selection)
    rng = np.random.default_rng(criteria.seed)
    order = sorted(by_person, key=lambda person: (-len(by_person[person]), natural(person)))
    for done, person in enumerate(order):
        if criteria.persons and len({record.person for record in selection.kept}) == criteria.persons:
            break
        room = criteria.total - len(selection.kept) if criteria.total else len(source.records)
        if room < 2:  # one alone could not be both in train and in val
            break
        candidates = by_person[person]
        if len(candidates) < criteria.enough:  # the others have no more
            selection.short += [(p, len(by_person[p])) for p in order[done:]]
            break
        shuffled = [candidates[i] for i in rng.permutation(len(candidates))]
        kept = passing(source, shuffled, criteria, looks, selection)
        if len(kept) < criteria.enough:
            selection.short.append((person, len(kept)))
            continue
        chosen = kept[: min(room, criteria.images or len(kept))]
        selection.kept += sorted(chosen, key=lambda record: record.file)
    return selection


def grouped(
    source: FaceSource, criteria: Criteria, left_out: set[str], selection: Selection
) -> dict[str, list[FaceRecord]]:
    """Records by person, without those that their labels alone rule out."""
    by_person: dict[str, list[FaceRecord]] = {}
    for record in source.records:
        if record.points is not None:
            record = measured_points(record)
        reason = "no person" if not record.person else refused(record, criteria)
        if record.person in left_out:
            continue
        if reason:
            selection.rejected.append((record.file, record.person, reason))
        else:
            by_person.setdefault(record.person, []).append(record)
    return by_person


def natural(person: str) -> tuple[int, str]:
    return (int(person), "") if person.isdigit() else (0, person)


def passing(
    source: FaceSource,
    candidates: Sequence[FaceRecord],
    criteria: Criteria,
    looks: "Looks",
    selection: Selection,
) -> list[FaceRecord]:
    """Those of one person's images that can be read and pass, as many as are needed."""
    kept: list[FaceRecord] = []
    for record in candidates:
        if criteria.images and len(kept) == criteria.enough:
            break
        try:
            record, reason = looks(record, source.image(record.file))
        except MissingImage:
            reason = "missing"
        except UnreadableImage:
            reason = "unreadable"
        if reason:
            selection.rejected.append((record.file, record.person, reason))
        else:
            kept.append(record)
    return kept


class Looks:
    """What only the image tells: sharpness, the detector's score, and landmarks where a set has none."""

    def __init__(self, criteria: Criteria, backend: str = "auto") -> None:
        self.criteria, self.backend = criteria, backend
        self._detector: Engine | None = None
        self._landmarks: Engine | None = None

    def __call__(self, record: FaceRecord, image: Image) -> tuple[FaceRecord, str]:
        """The record with its measures, and why it is refused, or ''."""
        if record.points is None or (self.criteria.min_score and record.score is None):
            record = self.found(record, image)
            if record.points is None:
                return record, "no face found"
        crop = recognition_crop(image, record.points)
        record = dataclasses.replace(record, sharpness=sharpness(crop))
        return record, refused(record, self.criteria)

    def found(self, record: FaceRecord, image: Image) -> FaceRecord:
        """With our detector's score; with its largest face's box and landmarks where there are none."""
        self._detector = self._detector or load_engine("detector", backend=self.backend)
        found = detect(self._detector, [image])[0]
        if record.box_xyxy is not None:
            same = iou_matrix(record.box_xyxy[None], found.boxes_xyxy)[0] >= LOOSEST_IOU
            return dataclasses.replace(record, score=float(found.scores[same].max(initial=0.0)))
        if not len(found):
            return record
        sides = found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]
        best = int(sides.max(1).argmax())
        self._landmarks = self._landmarks or load_engine("landmarks", backend=self.backend)
        points, _ = find_landmarks(self._landmarks, [image], found.boxes_xyxy[best : best + 1])
        box, score = found.boxes_xyxy[best], float(found.scores[best])
        return measured_points(dataclasses.replace(record, box_xyxy=box, points=points[0], score=score))


def measured_points(record: FaceRecord) -> FaceRecord:
    eyes = record.interocular_px or float(np.hypot(*(record.points[1] - record.points[0])))
    return dataclasses.replace(record, interocular_px=eyes, yaw=yaw(record.points))


def yaw(points: Floats) -> float:
    """How far the nose is off the middle of the eyes, along their line: 0 frontal, 1 over one eye."""
    across = points[1] - points[0]
    half = max(float(across @ across) / 2, 1e-6)
    return abs(float((points[2] - (points[0] + points[1]) / 2) @ across)) / half


def sharpness(crop: Image) -> float:
    """Deviation of the Laplacian over that of the grey levels, in the middle of a recognition crop."""
    grey = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY)[INNER, INNER].astype(np.float32)
    return float(cv2.Laplacian(grey, cv2.CV_32F).std() / max(float(grey.std()), 1.0))


def refused(record: FaceRecord, criteria: Criteria) -> str:
    """Why a record does not pass, or ''; what is not measured yet passes."""
    if record.interocular_px is not None and record.interocular_px < criteria.min_interocular:
        return "too small"
    if criteria.max_yaw and record.yaw is not None and record.yaw > criteria.max_yaw:
        return "averted"
    if record.score is not None and record.score < criteria.min_score:
        return "low score"
    if record.sharpness is not None and record.sharpness < criteria.min_sharpness:
        return "blurred"
    return ""


def with_split(records: Iterable[FaceRecord], criteria: Criteria) -> list[FaceRecord]:
    """Each person's images divided at random into train and val, at least one of each."""
    by_person: dict[str, list[FaceRecord]] = {}
    for record in records:
        by_person.setdefault(record.person, []).append(record)
    rng = np.random.default_rng(criteria.seed)
    divided = []
    for mine in by_person.values():
        num_val = min(max(1, round(len(mine) * criteria.val_share)), len(mine) - 1)
        held_out = set(rng.permutation(len(mine))[:num_val].tolist())
        splits = ["val" if i in held_out else "train" for i in range(len(mine))]
        divided += [dataclasses.replace(r, split=s) for r, s in zip(mine, splits, strict=True)]
    return divided
