"""What `mien bench` found, for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show(found: dict[str, Any], console: Console) -> None:
    """Machine, clip, stages, chain and memory."""
    machine, clip, engines = found["machine"], found["clip"], found["engines"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = (
        f"{machine['cpu']}, {machine['cores']} cores, {gpus}; Python {machine['python']}, {packages}",
        f"{clip['file']}: {clip['width']}x{clip['height']}; threads: {found['threads'] or 'all'}",
        "; ".join(f"{name}: {words}" for name, words in engines.items()),
    )
    for line in lines:
        console.print(line, highlight=False)
    console.print(stages_table(found["stages"]))
    console.print(chain_table(found["chain"]))
    memory = found["memory"]
    gpu = f", GPU memory in use {memory['gpu_used_mb']:.0f} MB" if memory["gpu_used_mb"] else ""
    console.print(f"peak resident memory {memory['peak_resident_mb']:.0f} MB{gpu}", highlight=False)


def stages_table(stages: list[dict[str, Any]]) -> Table:
    table = _table("stage", ("batch", "p50 ms", "p99 ms", "a second"))
    for row in stages:
        table.add_row(
            row["name"],
            str(row["batch"]),
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['per_second']:.0f}",
        )
    return table


def chain_table(chains: list[dict[str, Any]]) -> Table:
    table = _table("whole chain", ("p50 ms", "p99 ms", "frames/s", "faces/s"))
    for row in chains:
        table.add_row(
            row["name"],
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['frames_per_s']:.1f}",
            f"{row['faces_per_s']:.1f}",
        )
    return table


def _table(first: str, others: tuple[str, ...]) -> Table:
    table = Table(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
