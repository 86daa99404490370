"""`mien analyze`: the faces of stills, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.commands.shared_options import Backend, ConfigPath


def analyze(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images, or folders of images.")],
    jsonl: Annotated[bool, typer.Option("--jsonl", help="A line an image instead of one document.")] = False,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Add each face's embedding.")] = False,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="The detector's score from which a face counts.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write here instead of to standard output.")] = None,
    gallery: Annotated[Path | None, typer.Option(help="The gallery of enrolled people.")] = None,
    backend: Backend = None,
    config: ConfigPath = None,
) -> None:
    """Find and read the faces of images; one that cannot be read is reported in its entry."""
    import sys

    from rich.console import Console
    from rich.progress import track

    from daemon.analyze import Analyst, write_analysis
    from daemon.build_bar import building
    from daemon.images import expand_images
    from daemon.live_gallery import LiveGallery
    from daemon.looks import model_id
    from daemon.settings import effective
    from daemon.stills import load_still_engines
    from daemon.telemetry import configure_logging

    settings = effective(config, {"gallery": {"path": gallery}, "engines": {"backend": backend}})
    configure_logging(settings.log)  # to standard error: what is written here goes to the other
    images = list(expand_images(paths))
    console = Console(stderr=True)
    with building(console) as progress:
        engines = load_still_engines(settings, progress=progress)
    assert engines.embedder is not None
    people = LiveGallery(settings.gallery.path, model_id(engines.embedder.spec)).snapshot()
    analyst = Analyst(engines, settings.quality, settings.identity, people, embeddings, min_score)
    entries = (
        analyst.image(path)
        for path in track(
            images, "analysing", console=console, transient=True, disable=not console.is_terminal
        )
    )
    errors = write_analysis(entries, out, lines=jsonl)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if len(errors) == len(images):
        raise typer.Exit(1)
