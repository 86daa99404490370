"""Images in, the expression of each one's largest face out: the entries of `mien classify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.images import read_image
from daemon.paths import text_of
from engines.errors import MienError
from engines.expression import load_classifier
from engines.largest_face import face_crop, largest_face
from engines.runtime import Progress, load_engine
from engines.stages import express_both_sides

if TYPE_CHECKING:
    from rich.table import Table

DETECTOR_SIZE = (640, 640)


class Classifier:
    """The detector, the landmarks and one expression model, loaded once."""

    def __init__(
        self,
        checkpoint: Path | None,
        network: str,
        backend: str,
        whole: bool,
        progress: Progress | None = None,
    ) -> None:
        self.name, self._engine = load_classifier(checkpoint, network)
        self.labels = self._engine.spec.labels
        self._whole = whole
        if not whole:
            self._detector = load_engine("detector", backend=backend, size=DETECTOR_SIZE, progress=progress)
            self._landmarks = load_engine("landmarks", backend=backend, progress=progress)

    def image(self, path: Path) -> dict[str, Any]:
        """One entry of `predictions`; an image that cannot be read has an `error` instead of a class."""
        try:
            image = read_image(path)
        except MienError as error:
            return {"image_path": text_of(path), "error": text_of(str(error))}
        points = None if self._whole else largest_face(self._detector, self._landmarks, image)
        probabilities = express_both_sides(self._engine, face_crop(image, points)[None])[0]
        best = int(probabilities.argmax())
        return {
            "image_path": text_of(path),
            "predicted_class": best,
            "predicted_emotion": self.labels[best],
            "confidence": round(float(probabilities[best]), 6),
            "all_probabilities": {
                name: round(float(p), 6) for name, p in zip(self.labels, probabilities, strict=True)
            },
            "face_found": points is not None,
        }


def report(name: str, paths: Sequence[Path], entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The document: which model, which images, and an entry for each."""
    where = text_of(paths[0]) if len(paths) == 1 else [text_of(path) for path in paths]
    return {
        "model_checkpoint": name,
        "images_path": where,
        "num_images": len(entries),
        "predictions": list(entries),
    }


def summary(labels: Sequence[str], entries: Sequence[dict[str, Any]]) -> Table:
    """How many images of each class, and how sure the model is of them on average."""
    from rich.table import Table

    read = [entry for entry in entries if "error" not in entry]
    counts = Counter(entry["predicted_emotion"] for entry in read)
    table = Table("expression", "images", "share", "mean confidence", title=f"{len(entries)} images")
    for name in labels:
        sure = [entry["confidence"] for entry in read if entry["predicted_emotion"] == name]
        mean = f"{sum(sure) / len(sure):.2f}" if sure else "-"
        table.add_row(name, str(counts[name]), f"{counts[name] / max(1, len(read)):.0%}", mean)
    if len(read) < len(entries):
        table.add_row("not read", str(len(entries) - len(read)), "", "")
    return table
