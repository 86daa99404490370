"""The command line: one typer app; each command's module is light, and imports what is heavy when it runs."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from daemon.commands import (
    analyze,
    bench,
    classify,
    compare,
    config,
    ctl,
    doctor,
    engines,
    gallery,
    keys,
    relay,
    replay,
    run,
    watch,
)
from engines.errors import MienError

ENTRY_POINTS = "mien.commands"

app = typer.Typer(
    name="mien",
    help="Real-time face analytics that a person can run, trust and own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("mien"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Real-time face analytics that a person can run, trust and own."""


app.command()(run.run)
app.command()(replay.replay)
app.command()(analyze.analyze)
app.command()(compare.compare)
app.command()(classify.classify)
app.command()(bench.bench)
app.command()(watch.watch)
app.command()(relay.relay)
app.add_typer(keys.app, name="keys")
app.add_typer(ctl.app, name="ctl")
app.add_typer(gallery.app, name="gallery")
app.add_typer(engines.app, name="engines")
app.add_typer(config.app, name="config")
app.command()(doctor.doctor)
for _entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name, reverse=True):
    _command = _entry.load()
    if isinstance(_command, typer.Typer):  # a group of commands, such as `mien faces`
        app.add_typer(_command, name=_entry.name)
    else:
        app.command(name=_entry.name, context_settings={"allow_extra_args": True})(_command)


def main() -> None:
    """Exit codes: 0 done, 1 failed, 2 wrong use."""
    try:
        app()
    except MienError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except PermissionError as error:  # of a folder on the way, which may not be searched
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"error: {where}{error.strerror}; check the permissions of the folders it lies in",
            file=sys.stderr,
        )
        sys.exit(1)
