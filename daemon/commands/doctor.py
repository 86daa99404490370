"""`mien doctor`: what is there, what is missing, what to do; and why nobody was named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.explain import Explanation


def doctor(
    image: Annotated[
        Path | None,
        typer.Argument(help="A picture: tell why nobody on it is named.", show_default=False),
    ] = None,
    events: Annotated[
        Path | None, typer.Option(help="Events as JSON lines: tell why a track in them was not named.")
    ] = None,
    track: Annotated[int | None, typer.Option(help="With --events: the track.")] = None,
    camera: Annotated[str | None, typer.Option(help="With --events: the camera, where several are.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as one JSON array.")] = False,
    gallery: Annotated[Path | None, typer.Option(help="The gallery of enrolled people.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="The configuration to look at.", show_default=False)
    ] = None,
) -> None:
    """Look at versions, devices, engines and the configuration; or tell why somebody was not named."""
    from engines.errors import UsageError

    if (events is None) != (track is None) or (image is not None and events is not None):
        raise UsageError("give an image, or --events FILE with --track N, or nothing at all")
    if events is not None and track is not None:
        _explain_track(events, track, camera, config, as_json)
    elif image is not None:
        _explain_image(image, gallery, config, as_json)
    else:
        _examine(config, as_json)


def _examine(config: Path | None, as_json: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from daemon.doctor import examine

    findings = examine(config)
    table = Table(box=None)
    for heading in ("", "subject", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}
    for finding in findings:
        table.add_row(marks[finding.verdict], finding.subject, escape(finding.found), escape(finding.remedy))
    if as_json:
        _write_json(findings)
    else:
        Console().print(table)
    if any(finding.verdict == "wrong" for finding in findings):
        raise typer.Exit(1)


def _explain_track(path: Path, track: int, camera: str | None, config: Path | None, as_json: bool) -> None:
    from daemon.config import load_config
    from daemon.explain_track import explain_track

    _tell([explain_track(path, track, camera, load_config(config))], as_json)


def _explain_image(image: Path, gallery: Path | None, config: Path | None, as_json: bool) -> None:
    from rich.console import Console

    from daemon.build_bar import building
    from daemon.explain import explain_image
    from daemon.live_gallery import LiveGallery
    from daemon.looks import model_id
    from daemon.settings import effective
    from daemon.stills import load_still_engines
    from daemon.telemetry import configure_logging

    settings = effective(config, {"gallery": {"path": gallery}})
    configure_logging(settings.log)
    with building(Console(stderr=True)) as progress:
        engines = load_still_engines(settings, attributes=False, progress=progress)
    assert engines.embedder is not None
    people = LiveGallery(settings.gallery.path, model_id(engines.embedder.spec)).snapshot()
    _tell(explain_image(engines, settings, people, image), as_json)


def _tell(explanations: Sequence[Explanation], as_json: bool) -> None:
    from daemon.explain import in_lines
    from daemon.printable import printable

    if as_json:
        _write_json(explanations)
        return
    for line in in_lines(explanations):
        typer.echo(printable(line))


def _write_json(things: object) -> None:
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(things), indent=2).decode())
