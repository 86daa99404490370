"""Judging a closed-set network: scores with the mirror image, the report of each image, the table of all runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engines.errors import MienError
from engines.geometry import Floats
from trainers.closed_set_faces import Faces
from trainers.face_rows import FaceRecord, write_csv
from trainers.faces import ROOM
from trainers.fit import image_batch
from trainers.zips import SEED

BATCH = 64
POINTS = {
    "eyes": "2 points (eyes)",
    "eyes_nose": "3 points (eyes, nose)",
    "similarity": "5 points (similarity)",
}
REPORT = ("file", "person", "predicted", "correct", "probability", "probability_of_person", "rank_of_person")


def outputs(network: nn.Module, faces: Faces, mirror: bool = False, fast: bool = False) -> Tensor:
    """What a network says of the aligned crops, or of their mirror images: (M, D); `fast` is in bf16."""
    found = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device).eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=fast):
        for i in range(0, len(faces.records), BATCH):
            crops = [faces.stored(k) for k in range(i, min(i + BATCH, len(faces.records)))]
            images = torch.from_numpy(np.stack(crops)[:, ROOM:-ROOM, ROOM:-ROOM].copy()).to(device)
            batch = image_batch(images)
            found.append(network(batch.flip(3) if mirror else batch).float().cpu())
    network.cpu()
    return torch.cat(found)


def predict(network: nn.Module, faces: Faces, mirror: bool = False) -> Floats:
    """Probabilities of all persons (M, N)."""
    return outputs(network, faces, mirror).softmax(1).numpy()


def accuracy_figures(scores: Floats, label: np.ndarray) -> dict[str, float]:
    """Accuracy with its 95 % bootstrap interval, and the share whose person is among the best five."""
    rank = ranks(scores, label)
    right = (rank == 1).astype(float)
    rng = np.random.default_rng(SEED)
    means = np.array([right[rng.integers(0, len(right), len(right))].mean() for _ in range(1000)])
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "accuracy": float(right.mean()),
        "accuracy_low": float(low),
        "accuracy_high": float(high),
        "top_5": float((rank <= 5).mean()),
    }


def ranks(scores: Floats, label: np.ndarray) -> np.ndarray:
    """Place of the true person, 1 is the best; ties count against."""
    own = scores[np.arange(len(label)), label]
    return (scores >= own[:, None]).sum(1)


def write_report(path: Path, records: Sequence[FaceRecord], persons: Sequence[str], scores: Floats) -> None:
    """One row an image: who it is, who it is taken for, how sure, and the rank of the right person."""
    number = {person: i for i, person in enumerate(persons)}
    label = np.array([number[record.person] for record in records])
    rows = []
    for record, own, row, rank in zip(records, label, scores, ranks(scores, label), strict=True):
        best = int(row.argmax())
        rows.append(
            {
                "file": record.file,
                "person": record.person,
                "predicted": persons[best],
                "correct": int(rank == 1),
                "probability": round(float(row[best]), 4),
                "probability_of_person": round(float(row[own]), 4),
                "rank_of_person": int(rank),
            }
        )
    write_csv(path, REPORT, rows)


def write_table(run: Path) -> Path:
    """run/table.md from every result.json below: CE beside ArcFace, a row for each network, start, alignment."""
    results = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(run.glob("*/result.json"))]
    if not results:
        raise MienError(f"{run}: no result.json below it; train first: mien train closed_set run={run}")
    path = run / "table.md"
    path.write_text(table_text(results), encoding="utf-8")
    return path


def table_text(results: Sequence[dict[str, Any]]) -> str:
    rows: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for result in results:
        key = ("network", "start", "persons", "train_images", "val_images", "alignment")
        rows.setdefault(tuple(result[k] for k in key), {})[result["loss"]] = result
    lines = [
        "| network | start | persons | train / val images | alignment | CE | ArcFace | samples seen |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(rows, key=lambda k: (*k[:-1], list(POINTS).index(k[-1]))):
        network, start, persons, train, val, alignment = key
        cells = [cell(rows[key].get(loss)) for loss in ("ce", "arcface")]
        seen = " / ".join(f"{r['samples']:,}" for _, r in sorted(rows[key].items(), reverse=True))
        head = (network, start, f"{persons:,}", f"{train:,} / {val:,}", POINTS[alignment])
        lines.append(f"| {' | '.join((*head, *cells, seen))} |")
    settings = sorted({f"s={r['scale']:g}, m={r['margin']:g}" for r in results if r["loss"] == "arcface"})
    sides = {
        "with the mirror image beside each face" if r.get("mirror", True) else "as they are" for r in results
    }
    note = (
        f"Accuracy on the validation images, {' or '.join(sorted(sides))}; in brackets the 95 % bootstrap "
        f"interval, then the share with the right person among five.{' ArcFace with ' if settings else ''}"
        f"{' and '.join(settings)}{'.' if settings else ''}"
    )
    return "\n".join([*lines, "", note, ""])


def cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return "not run"
    low, high = result["accuracy_low"], result["accuracy_high"]
    return f"**{result['accuracy']:.1%}** ({low:.1%} to {high:.1%}), top 5 {result['top_5']:.1%}"
