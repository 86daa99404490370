"""`mien gallery`: who is enrolled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.shared_options import Backend, ConfigPath

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.control_client import Control, RemoteGallery
    from daemon.gallery import Gallery

app = typer.Typer(
    help="Enrol, list, show, remove, back up and check people; find who comes again.", no_args_is_help=True
)

GalleryPath = Annotated[
    Path | None, typer.Option("--gallery", help="The gallery file, instead of the config's.")
]


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
    backend: Backend = None,
    config: ConfigPath = None,
) -> None:
    """Enrol a person by one or more images of their face."""
    from rich.console import Console
    from rich.progress import track

    from daemon.build_bar import building
    from daemon.enrolment import looks_of
    from daemon.gallery import checked_name
    from daemon.images import expand_images
    from daemon.settings import effective
    from daemon.stills import load_still_engines

    name = checked_name(name)
    settings = effective(config, {"gallery": {"path": gallery}, "engines": {"backend": backend}})
    paths = list(expand_images(images))
    console = Console(stderr=True)
    with building(console) as progress:
        engines = load_still_engines(settings, attributes=False, progress=progress)
    shown = track(paths, "looking", console=console, transient=True, disable=not console.is_terminal)
    looked = looks_of(engines, shown, settings.quality, any_quality=any_quality)
    with _owned(settings, gallery, create=True) as opened:
        num_new = opened.enrol(name, looked.looks)
        total = next(person.num_looks for person in opened.people() if person.name == name)
    for failure in looked.failures:
        typer.echo(f"error: {failure}", err=True)
    num_known = len(looked.looks) - num_new
    known = f", {num_known} enrolled before" if num_known else ""
    typer.echo(f"{name}: {num_new} new{known}; {total} in all in {opened.path}")


@app.command("list")
def list_people(gallery: GalleryPath = None, config: ConfigPath = None) -> None:
    """List everybody."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from daemon.gallery import NoGalleryError

    try:
        with _opened(gallery, config) as opened:
            people = opened.people()
    except NoGalleryError as error:
        typer.echo(str(error))
        return
    if not people:
        typer.echo(f"{opened.path}: nobody is enrolled; mien gallery enroll NAME IMAGE...")
        return
    table = Table("name", "images", "embedder", "enrolled", box=None)
    for person in people:
        row = (person.name, str(person.num_looks), ", ".join(person.models), person.enrolled_at)
        table.add_row(*map(Text, row))  # as they are: a name may look like rich's markup
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
    from rich.text import Text

    from daemon.gallery import checked_name

    name = checked_name(name)
    with _opened(gallery, config) as opened:
        looks = opened.looks(name)
    title = Text(name, "table.title")
    table = Table("image", "eyes apart", "embedder", "enrolled", title=title, title_justify="left", box=None)
    for look in looks:
        row = (look.image, f"{look.interocular_px:.0f} px", look.model, look.enrolled_at)
        table.add_row(*map(Text, row))  # as they are: a file's name may look like rich's markup
    Console().print(table)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The person's name.")],
    gallery: GalleryPath = None,
    config: ConfigPath = None,
) -> None:
    """Erase a person wholly."""
    from daemon.gallery import checked_name

    name = checked_name(name)
    with _opened(gallery, config) as opened:
        opened.remove(name)
    typer.echo(f"{name}: erased from {opened.path}")


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; only its owner may read it.")],
    gallery: GalleryPath = None,
    config: ConfigPath = None,
) -> None:
    """Write everybody to one file, also while the daemon runs."""
    with _opened(gallery, config) as opened:
        num_people = opened.backup(file)
    typer.echo(f"{file}: {num_people} people of {opened.path}; who is removed later is still in it")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `backup` wrote, or any gallery.")],
    gallery: GalleryPath = None,
    config: ConfigPath = None,
) -> None:
    """Take the people of a backup in place of everybody who is enrolled now."""
    with _opened(gallery, config, create=True) as opened:
        num_people = opened.restore(file)
    typer.echo(f"{opened.path}: {num_people} people of {file}")


@app.command()
def check(gallery: GalleryPath = None, config: ConfigPath = None) -> None:
    """Look for damage, for people too alike to tell apart, and for images unlike their person's others."""
    from daemon.control_requests import GalleryCheck
    from daemon.gallery_check import findings
    from daemon.settings import effective
    from engines.errors import UsageError

    settings = effective(config, {"gallery": {"path": gallery}})
    daemon = _owner(settings, gallery)
    with _through(daemon, settings) as opened:
        if daemon is not None:
            try:
                daemon.ask(GalleryCheck())
            except UsageError:  # it does not know what that is
                typer.echo(
                    f"{daemon.path}: the daemon is older than this command, and the file was not looked at for damage;"
                    " restart it",
                    err=True,
                )
        found = findings(opened, settings.identity, settings.engines.embedder)
    for finding in found:
        typer.echo(finding)
    typer.echo(f"{opened.path}: {len(found) or 'no'} findings")
    if found:
        raise typer.Exit(1)


@app.command()
def strangers(
    events: Annotated[
        list[Path], typer.Argument(metavar="EVENTS...", help="Recorded events with embeddings, JSON lines.")
    ],
    enroll: Annotated[
        tuple[int, str] | None,
        typer.Option("--enroll", metavar="NUMBER NAME", help="Enrol the person of this number."),
    ] = None,
    gallery: GalleryPath = None,
    config: ConfigPath = None,
) -> None:
    """Group the unknown tracks of recorded events by who they are of: who comes again and is not enrolled.

    The events have to be of the embedder that is in use now.
    """
    from rich.console import Console

    from daemon.identity import threshold_of
    from daemon.looks import check_fit, model_id
    from daemon.settings import effective
    from daemon.strangers import chosen, strangers_table
    from daemon.strangers import strangers as found_in
    from engines.runtime import spec_of

    settings = effective(config, {"gallery": {"path": gallery}})
    spec = spec_of("embedder", settings.engines.embedder)
    people = found_in(events, threshold_of(settings.identity, spec))
    if enroll is None:
        Console().print(strangers_table(people) if people else "nobody unknown was seen well enough")
        return
    number, name = enroll
    looks = chosen(people, number).looks(model_id(spec))
    check_fit(looks, spec)
    with _owned(settings, gallery, create=True) as opened:
        typer.echo(f"{name}: {opened.enrol(name, looks)} new in {opened.path}")


def _opened(path: Path | None, config: Path | None, *, create: bool = False) -> Gallery | RemoteGallery:
    from daemon.settings import effective

    return _owned(effective(config, {"gallery": {"path": path}}), path, create=create)


def _owned(settings: Config, path: Path | None, *, create: bool = False) -> Gallery | RemoteGallery:
    return _through(_owner(settings, path), settings, create=create)


def _owner(settings: Config, path: Path | None) -> Control | None:
    """The daemon that owns the gallery; path: what --gallery named."""
    from daemon.control_client import owner_of

    return owner_of(settings, named=path is not None)


def _through(daemon: Control | None, settings: Config, *, create: bool = False) -> Gallery | RemoteGallery:
    """The gallery through the daemon that owns it, or the file itself where none does."""
    from daemon.control_client import RemoteGallery
    from daemon.gallery import Gallery

    return Gallery(settings.gallery.path, create=create) if daemon is None else RemoteGallery(daemon)
