"""`mien engines`: build, list and verify the compiled models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Build, list or verify engines.", no_args_is_help=True)

Backend = Annotated[str, typer.Option(help="auto, openvino or eager.")]
Cache = Annotated[
    Path | None, typer.Option(help="Where engines are kept; by default the user's cache folder.")
]


@app.command()
def build(
    model: Annotated[
        str | None, typer.Argument(help="detector, landmarks, embedder or attributes; all.")
    ] = None,
    backend: Backend = "auto",
    size: Annotated[
        tuple[int, int] | None, typer.Option(help="Input width and height, for the detector.")
    ] = None,
    cache: Cache = None,
    force: Annotated[bool, typer.Option("--force", help="Build even what is in order.")] = False,
) -> None:
    """Build the engines that are missing or out of date, and prove their numbers against eager torch."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from engines.runtime import MODELS, resolve, why_unusable

    requests = [
        resolve(m, backend, size if m == "detector" else None, None, cache) for m in _models(model, MODELS)
    ]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        for request in requests:
            name = f"{request.model} {request.size[0]}x{request.size[1]} on {request.backend}"
            task = progress.add_task(name, total=1)
            reason = None if request.backend == "eager" else why_unusable(request)
            if request.backend == "eager" or not (reason or force):
                done = "needs no build" if request.backend == "eager" else "in order"
            else:
                from engines.build import build_engine

                built = build_engine(request)
                done = f"built in {built.build_seconds} s, parity {max(built.parity.values()):.1e}"
            progress.update(task, completed=1, description=f"{name}: {done}")


@app.command("list")
def list_engines(cache: Cache = None) -> None:
    """Show what is in the cache, and whether it fits this machine and these weights."""
    from rich.console import Console
    from rich.table import Table

    from engines.manifest import EngineManifest
    from engines.runtime import cached, default_cache, why_unusable

    folder = cache or default_cache()
    table = Table("model", "input", "backend", "precision", "parity", "built in", "state", title=str(folder))
    for request in cached(folder):
        reason = why_unusable(request)
        size = f"{request.size[0]}x{request.size[1]}"
        if reason and "manifest" in reason:
            table.add_row(request.model, size, request.backend, "?", "?", "?", reason)
            continue
        found = EngineManifest.load(request.folder)
        parity = f"{max(found.parity.values()):.1e}"
        seconds = f"{found.build_seconds:.1f} s"
        table.add_row(
            request.model, size, found.backend, found.precision, parity, seconds, reason or "in order"
        )
    Console().print(table)


@app.command()
def verify(
    model: Annotated[
        str | None, typer.Argument(help="One model; by default all that are in the cache.")
    ] = None,
    cache: Cache = None,
) -> None:
    """Compare every cached engine with eager torch again. Exit code 1 if one is off or damaged."""
    from engines.build import verify_engine
    from engines.errors import MienError
    from engines.runtime import cached, default_cache

    failed = False
    found = [r for r in cached(cache or default_cache()) if model in (None, r.model)]
    if not found:
        raise MienError(f"{cache or default_cache()}: no engine here; `mien engines build` makes them")
    for request in found:
        name = f"{request.model} {request.size[0]}x{request.size[1]} on {request.backend}"
        try:
            parity = verify_engine(request)
            typer.echo(f"{name}: in order, parity {max(parity.values()):.1e}")
        except MienError as error:
            failed = True
            typer.echo(f"{name}: {error}", err=True)
    if failed:
        raise typer.Exit(1)


def _models(model: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    return known if model in (None, "all") else (str(model),)
