"""`mien engines`: build, list, verify and remove the compiled models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from engines.runtime import EngineRequest

app = typer.Typer(help="Build, list, verify or remove engines.", no_args_is_help=True)

PIPED_WIDTH = 160  # columns of a table that goes into a file or another program
Cache = Annotated[
    Path | None, typer.Option(help="Where engines are kept; by default the user's cache folder.")
]
OneOrAll = Annotated[str | None, typer.Argument(help="One model; by default all that are in the cache.")]


@app.command()
def build(
    model: Annotated[
        str | None, typer.Argument(help="detector, landmarks, embedder or attributes; all.")
    ] = None,
    backend: Annotated[str, typer.Option(help="auto, tensorrt, aot_inductor, openvino or eager.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, f32, f16, bf16, int8 or mixed.")] = "auto",
    max_batch: Annotated[int | None, typer.Option(help="Pictures a call, on a GPU.", min=1)] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option(help="Input width and height, for the detector.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="For int8: measure ranges on the faces in (at most 300 of) this folder's pictures, not on the "
            "shipped ones; kept when it is built anew, until `mien engines clean`.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    own: Annotated[
        Path | None,
        typer.Option(
            help="Your own MODEL: a checkpoint's folder, or the spec file of an ONNX model.", exists=True
        ),
    ] = None,
    cache: Cache = None,
    force: Annotated[bool, typer.Option("--force", help="Build even what is in order.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="Build what this configuration's cameras run with, in place of all the above."),
    ] = None,
) -> None:
    """Build the engines that are missing or out of date, and prove their numbers against eager torch."""
    from engines.errors import UsageError
    from engines.runtime import MODELS, resolve

    if config:
        if model or own or calibrate or force:
            raise UsageError(
                "--config: says itself what is built; leave MODEL, --own, --calibrate and --force out"
            )
        _build_for(config)
        return
    if own and model is None:
        raise UsageError("--own: name the model whose place it takes, such as detector or embedder")
    requests = [
        resolve(
            each,
            backend,
            size if each == "detector" else None,
            None,
            cache,
            device=device,
            precision=precision,
            max_batch=max_batch,
            own=own,
        )
        for each in _models(model, MODELS)
    ]
    _bring_up_to_date(requests, calibrate, force)


def _bring_up_to_date(requests: list[EngineRequest], calibrate: Path | None, force: bool) -> None:
    from rich.console import Console

    from daemon.build_bar import building
    from engines.errors import UsageError
    from engines.runtime import why_unusable

    if calibrate and not any(request.precision == "int8" for request in requests):
        raise UsageError("--calibrate: none of these engines is int8; say --precision int8 or mixed, too")
    done = []
    with building(Console(stderr=True)) as tell:
        for request in requests:
            pictures = calibrate if request.precision == "int8" else None
            reason = why_unusable(request) if request.needs_build else None
            if reason or (request.needs_build and (force or pictures)):
                tell(f"building {request.words}: {reason or 'asked for'}")
                done.append(_built(request, pictures, reason is None))
            else:
                done.append(f"{request.words}: {'in order' if request.needs_build else 'needs no build'}")
    for line in done:
        typer.echo(line)


def _build_for(config: Path) -> None:
    from rich.console import Console

    from daemon.build_bar import building
    from daemon.config import load_config
    from daemon.loading import build_engines

    with building(Console(stderr=True)) as tell:
        engines = build_engines(load_config(config), tell)
    for engine in engines:
        width, height = engine.input_size
        typer.echo(f"{engine.spec.task} {width}x{height} on {engine.backend}: in order")


def _built(request: EngineRequest, calibrate: Path | None, force: bool) -> str:
    from engines.build import build_engine

    built = build_engine(request, calibrate, force=force)
    told = built.calibration
    measured = f", calibrated on {told['pictures']}" if told else ""
    measured += f"; {told['lost']}" if "lost" in told else ""
    proved = f"parity {max(built.parity.values()):.1e}"
    return f"{request.words}: built in {built.build_seconds} s, {proved}{measured}"


@app.command("list")
def list_engines(cache: Cache = None) -> None:
    """Show what is in the cache, and whether it fits this machine and these weights."""
    from rich.console import Console
    from rich.table import Table

    from engines.runtime import cached, default_cache

    folder = cache or default_cache()
    table = Table()
    for column in ("model", "input", "backend", "device", "precision", "parity", "built"):
        table.add_column(column, no_wrap=True)
    table.add_column("state", overflow="fold")
    for request in cached(folder):
        table.add_row(*_row(request))
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    console.print(str(folder), markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def _row(request: EngineRequest) -> tuple[str, ...]:
    from engines.errors import MienError
    from engines.manifest import EngineManifest
    from engines.runtime import why_unusable

    model, _, keeper = request.name.partition("+")
    model = f"{model} ({keeper})" if keeper else model
    named = (
        model,
        f"{request.size[0]}x{request.size[1]}",
        request.backend,
        request.device,
        request.precision,
    )
    reason = None
    try:
        reason = why_unusable(request)
        found = EngineManifest.load(request.folder)
    except MienError as error:
        return (*named, "?", "?", reason or str(error))
    built = f"{found.built_at[:10]}, {found.build_seconds:.0f} s"
    return (*named, f"{max(found.parity.values()):.1e}", built, reason or "in order")


@app.command()
def verify(model: OneOrAll = None, cache: Cache = None) -> None:
    """Compare every cached engine with eager torch again. Exit code 1 if one is off or damaged."""
    from engines.build import verify_engine
    from engines.errors import MienError
    from engines.runtime import cached, default_cache

    failed = False
    found = [r for r in cached(cache or default_cache()) if model in (None, r.model)]
    if not found:
        raise MienError(f"{cache or default_cache()}: no engine here; `mien engines build` makes them")
    for request in found:
        try:
            parity = verify_engine(request)
            typer.echo(f"{request.words}: in order, parity {max(parity.values()):.1e}")
        except MienError as error:
            failed = True
            typer.echo(f"{request.words}: {error}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def clean(model: OneOrAll = None, cache: Cache = None) -> None:
    """Remove built engines; the next start, or `mien engines build`, makes them anew."""
    from engines.runtime import clean as remove
    from engines.runtime import default_cache

    removed = remove(cache or default_cache(), model)
    typer.echo(f"{cache or default_cache()}: {len(removed)} engines removed")


def _models(model: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    return known if model in (None, "all") else (str(model),)
