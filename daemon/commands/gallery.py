"""`mien gallery`: who is enrolled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from daemon.gallery import Gallery

app = typer.Typer(help="Enrol, list, show or remove people.", no_args_is_help=True)

GalleryPath = Annotated[
    Path | None, typer.Option("--gallery", help="The gallery file, instead of the config's.")
]
ConfigPath = Annotated[Path | None, typer.Option(help="The configuration whose settings are used.")]


@app.command()
def enroll(
    name: Annotated[str, typer.Argument(help="The person's name.")],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Images with this person's face alone, or folders of them."),
    ],
    any_quality: Annotated[
        bool, typer.Option("--any-quality", help="Enrol small, blurred or badly lit faces, too.")
    ] = False,
    gallery: GalleryPath = None,
    backend: Annotated[str | None, typer.Option(help="auto, openvino or eager.")] = None,
    config: ConfigPath = None,
) -> None:
    """Enrol a person by one or more images of their face."""
    from rich.console import Console
    from rich.progress import track

    from daemon.build_bar import building
    from daemon.enrolment import enrol
    from daemon.gallery import Gallery, checked_name
    from daemon.images import expand_images
    from daemon.settings import effective
    from daemon.stills import load_still_engines

    name = checked_name(name)
    settings = effective(config, {"gallery": {"path": gallery}, "engines": {"backend": backend}})
    paths = list(expand_images(images))
    console = Console(stderr=True)
    with Gallery(settings.gallery.path) as opened:
        with building(console) as progress:
            engines = load_still_engines(settings, attributes=False, progress=progress)
        shown = track(paths, "looking", console=console, transient=True, disable=not console.is_terminal)
        result = enrol(opened, engines, name, shown, settings.quality, any_quality=any_quality)
        total = next(person.num_looks for person in opened.people() if person.name == name)
    for failure in result.failures:
        typer.echo(f"error: {failure}", err=True)
    known = f", {result.num_known} enrolled before" if result.num_known else ""
    typer.echo(f"{name}: {result.num_new} new{known}; {total} in all in {settings.gallery.path}")


@app.command("list")
def list_people(gallery: GalleryPath = None, config: ConfigPath = None) -> None:
    """List everybody."""
    from rich.console import Console
    from rich.table import Table

    with _opened(gallery, config) as opened:
        people = opened.people()
    if not people:
        typer.echo(f"{opened.path}: nobody is enrolled; mien gallery enroll NAME IMAGE...")
        return
    table = Table("name", "images", "embedder", "enrolled", box=None)
    for person in people:
        table.add_row(person.name, str(person.num_looks), ", ".join(person.models), person.enrolled_at)
    Console().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The person's name.")],
    gallery: GalleryPath = None,
    config: ConfigPath = None,
) -> None:
    """Show one person's images."""
    from rich.console import Console
    from rich.table import Table

    with _opened(gallery, config) as opened:
        looks = opened.looks(name)
    table = Table("image", "eyes apart", "embedder", "enrolled", title=name, title_justify="left", box=None)
    for look in looks:
        table.add_row(look.image, f"{look.interocular_px:.0f} px", look.model, look.enrolled_at)
    Console().print(table)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The person's name.")],
    gallery: GalleryPath = None,
    config: ConfigPath = None,
) -> None:
    """Erase a person wholly."""
    with _opened(gallery, config) as opened:
        opened.remove(name)
    typer.echo(f"{name}: erased from {opened.path}")


def _opened(path: Path | None, config: Path | None) -> Gallery:
    from daemon.gallery import Gallery
    from daemon.settings import effective

    return Gallery(effective(config, {"gallery": {"path": path}}).gallery.path)
