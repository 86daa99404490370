"""`mien compare`: are these two images the same person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.commands.shared_options import Backend, ConfigPath


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="An image.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    out: Annotated[Path | None, typer.Option(help="Write a picture of the two aligned crops here.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="The similarity from which it is one person.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as one JSON object.")] = False,
    backend: Backend = None,
    config: ConfigPath = None,
) -> None:
    """Compare the largest faces of two images."""
    import json

    from rich.console import Console

    from daemon.build_bar import building
    from daemon.compare import compare as compare_images
    from daemon.compare import write_picture
    from daemon.settings import effective
    from daemon.stills import load_still_engines

    settings = effective(config, {"identity": {"threshold": threshold}, "engines": {"backend": backend}})
    with building(Console(stderr=True)) as progress:
        engines = load_still_engines(settings, attributes=False, progress=progress)
    result = compare_images(engines, settings, first, second)
    if out is not None:
        write_picture(out, result)
    for path, num_faces in zip((first, second), result.num_faces, strict=True):
        if num_faces > 1:
            _tell(f"{path}: shows {num_faces} faces; the largest is compared")
    answer = {
        "similarity": round(result.similarity, 4),
        "threshold": round(result.threshold, 4),
        "same": result.same,
        "quality": [list(face.quality.reasons) for face in result.faces],
    }
    words = f"{result.verdict}: similarity {result.similarity:.3f}, threshold {result.threshold:.3f}"
    typer.echo(json.dumps(answer) if as_json else words)
    for path, face in zip((first, second), result.faces, strict=True):
        if face.quality.reasons:
            _tell(f"{path}: the face is {', '.join(face.quality.reasons)}; the similarity may mean little")


def _tell(words: str) -> None:
    typer.echo(words, err=True)
