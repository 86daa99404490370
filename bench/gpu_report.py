"""bench.gpu's figures as tables for people: `python -m bench.gpu_report gpu.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]
SECTIONS = {
    "engine ": (
        "engines",
        "model backend precision graphs batch p50_ms p99_ms pictures_s roof parity memory_mib build_s load_s",
    ),
    "images ": (
        "image path: on the device, and by cv2 on the host",
        "size frames levels_apart device_ms host_ms",
    ),
    "chain ": (
        "chain",
        "kind size faces frames p50_ms p99_ms frames_s upload_ms busy_ms gaps_ms",
    ),
    "equality ": (
        "the chain beside eager f32 on the host: largest differences, and what is beyond the tolerances",
        "kind faces box_px landmark_px embedding_off age_years gender_differ_clear emotion_differ_clear beyond",
    ),
    "streams ": ("streams of 25 frames/s, p99 < 40 ms", "kind size faces streams"),
}


def main(argv: Sequence[str] | None = None) -> int:
    (path,) = sys.argv[1:] if argv is None else argv
    tables(json.loads(Path(path).read_text(encoding="utf-8")))
    return 0


def tables(rows: Mapping[str, Any]) -> None:
    """Print what there is: machine, a table for each part, how many times eager f16, errors, targets."""
    for name, value in rows["machine"].items():
        print(f"{name}: {value}")
    for prefix, (title, names) in SECTIONS.items():
        table(title, names.split(), of(rows, prefix))
    batches, speeds = times_eager(rows)
    title = "f16: times as fast as eager without CUDA graphs, by batch (wanted of TensorRT or AOTInductor: 2)"
    table(title, ["model", "engine", *batches], speeds)
    print()
    for key, value in rows.items():
        for row in value if isinstance(value, list) else [value]:
            if "error" in row:
                graphs = " with CUDA graphs" if row.get("graphs") else ""
                print(f"{key}{graphs}: {row['error']}")
    for line in targets(rows):
        print(line)


def of(rows: Mapping[str, Any], prefix: str) -> Rows:
    """All rows of a part that did not fail."""
    values = [value for key, value in rows.items() if key.startswith(prefix)]
    flat = [row for value in values for row in (value if isinstance(value, list) else [value])]
    return [row for row in flat if "error" not in row]


def table(title: str, names: Sequence[str], rows: Rows) -> None:
    """Aligned columns under their names; nothing where there are no rows."""
    if not rows:
        return
    lines = [list(names), *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    print(f"\n{title}")
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def times_eager(rows: Mapping[str, Any]) -> tuple[list[str], list[dict[str, str]]]:
    """The batches, and for each model and f16 engine how many times as fast as plain eager it is at each."""
    plain: dict[tuple[str, int], float] = {}
    others: dict[tuple[str, str], dict[int, float]] = {}
    for row in of(rows, "engine "):
        if row["precision"] != "f16":
            continue
        if row["backend"] == "eager" and not row["graphs"]:
            plain[row["model"], row["batch"]] = row["pictures_s"]
        else:
            name = row["backend"] + (" with CUDA graphs" if row["graphs"] else "")
            others.setdefault((row["model"], name), {})[row["batch"]] = row["pictures_s"]
    found = []
    for (model, name), speeds in others.items():
        times = {b: speed / plain[model, b] for b, speed in speeds.items() if (model, b) in plain}
        found.append({"model": model, "engine": name} | {str(b): f"{x:.2f}" for b, x in times.items()})
    return [str(batch) for batch in sorted({batch for _, batch in plain})], found


def targets(rows: Mapping[str, Any]) -> list[str]:
    """The figures asked of a GPU's chain: 2,000 frames/s, 4 and 8 ms."""
    lines = []
    one = [row for row in of(rows, "chain ") if (row["faces"], row["size"]) == (1, "1280x720")]
    for kind in dict.fromkeys(row["kind"] for row in one):
        here = [row for row in one if row["kind"] == kind]
        best = max(row["frames_s"] for row in here)
        lines.append(f"{kind}, one face at 1280x720: {best:g} frames/s batched (wanted: 2000)")
        for row in here:
            if row["frames"] == 1:
                lines.append(
                    f"{kind}, one frame: p50 {row['p50_ms']} ms (wanted: 4), p99 {row['p99_ms']} ms (wanted: 8)"
                )
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
