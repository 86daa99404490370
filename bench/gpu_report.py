"""bench.gpu's figures as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ENGINE = (
    "model",
    "backend",
    "precision",
    "graphs",
    "batch",
    "p50_ms",
    "p99_ms",
    "pictures_s",
    "roof",
    "parity",
)
ENGINE += ("memory_mib", "build_s")
IMAGES = ("size", "frames", "levels_apart", "device_ms", "host_ms")
CHAIN = (
    "size",
    "faces",
    "found",
    "frames",
    "p50_ms",
    "p99_ms",
    "frames_s",
    "upload_ms",
    "busy_ms",
    "gaps_ms",
)


def tables(rows: Mapping[str, Any]) -> None:
    """Print what there is: machine, engines, image path, chain, streams, and the targets."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    for name, value in rows["machine"].items():
        console.print(f"{name}: {value}", highlight=False)
    engines = [row for each in _of(rows, "engine ") for row in each]
    sections = (
        ("engines", ENGINE, [row for row in engines if "error" not in row]),
        ("image path: on the device, and by cv2 on the host", IMAGES, list(_of(rows, "images "))),
        ("chain", CHAIN, [row for row in _of(rows, "chain ") if "error" not in row]),
    )
    for title, names, found in sections:
        if found:
            table = Table(*names, title=title)
            for row in found:
                table.add_row(*(str(row.get(name, "")) for name in names))
            console.print(table)
    for row in [*engines, *_of(rows, "chain ")]:
        if "error" in row:
            named = " ".join(str(row.get(name, "")) for name in ("model", "backend", "precision"))
            console.print(f"{named or 'chain'}: {row['error']}", highlight=False, style="yellow")
    for row in _of(rows, "streams "):
        console.print(
            f"{row['size']}, {row['faces']} faces: {row['streams']} streams of 25 frames/s, p99 < 40 ms"
        )
    for line in targets(rows):
        console.print(line, highlight=False)


def targets(rows: Mapping[str, Any]) -> list[str]:
    """The figures asked of a GPU: 2,000 frames/s, 4 and 8 ms, and twice as fast as eager f16."""
    lines = []
    one = [row for row in _of(rows, "chain ") if row.get("faces") == 1 and row.get("size") == "1280x720"]
    if one:
        alone = min(one, key=lambda row: row["frames"])
        best = max(row["frames_s"] for row in one)
        lines.append(f"one face at 1280x720: {best:g} frames/s batched (wanted: 2000)")
        lines.append(f"one frame: p50 {alone['p50_ms']} ms (wanted: 4), p99 {alone['p99_ms']} ms (wanted: 8)")
    speeds = {
        (row["model"], row["batch"], row["backend"]): row["pictures_s"]
        for each in _of(rows, "engine ")
        for row in each
        if row.get("precision") == "f16" and (row.get("graphs") or row["backend"] == "eager")
    }
    for (model, batch, backend), speed in speeds.items():
        plain = speeds.get((model, batch, "eager"))
        if backend != "eager" and plain:
            lines.append(
                f"{model}, batch {batch}: {backend} f16 is {speed / plain:.2f} x eager f16 (wanted: 2)"
            )
    return lines


def _of(rows: Mapping[str, Any], prefix: str) -> Iterable[Any]:
    return [value for key, value in rows.items() if key.startswith(prefix)]
