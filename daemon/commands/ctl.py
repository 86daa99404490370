"""`mien ctl`: a running daemon, looked at and changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from daemon.control_requests import AnyRequest

app = typer.Typer(help="Look at a running daemon, and change its cameras.", no_args_is_help=True)
camera_app = typer.Typer(help="Add, remove or restart a camera of a running daemon.", no_args_is_help=True)
app.add_typer(camera_app, name="camera")

ConfigPath = Annotated[
    Path | None,
    typer.Option(help="The daemon's configuration, which says where it listens.", show_default=False),
]
SocketPath = Annotated[Path | None, typer.Option("--socket", help="The control socket.", show_default=False)]
Name = Annotated[str, typer.Argument(help="The camera's name.")]


@app.command()
def status(
    config: ConfigPath = None,
    socket: SocketPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show how the daemon and its cameras are."""
    from daemon.control_requests import Status

    found = _asked(Status(), config, socket)
    if as_json:
        import json

        typer.echo(json.dumps(found))
    else:
        _show(found)


@app.command()
def reload(config: ConfigPath = None, socket: SocketPath = None) -> None:
    """Have the daemon read its configuration again; a wrong one is refused, and the old one goes on."""
    from daemon.control_requests import Reload

    done = _asked(Reload(), config, socket)
    told = [
        f"{what}: {', '.join(done[what])}"
        for what in ("added", "removed", "changed", "restarted")
        if done[what]
    ]
    typer.echo("\n".join(told) or "no camera has changed")
    if done["needs_restart"]:
        typer.echo(f"takes effect at the next start: {', '.join(done['needs_restart'])}")


@camera_app.command()
def add(
    name: Name,
    source: Annotated[
        str, typer.Argument(help="As in the config; `-` reads a line, so that no password shows.")
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other key of a camera.")
    ] = None,
    config: ConfigPath = None,
    socket: SocketPath = None,
) -> None:
    """Add a camera, until the next reload or start."""
    from daemon.control_requests import CameraAdd

    source = sys.stdin.readline().strip() if source == "-" else source
    asked = {"name": name, "source": _whole(source)} | dict(_setting(each) for each in settings or ())
    typer.echo(f"{_asked(CameraAdd(asked), config, socket)}: added, until the next reload or start")


@camera_app.command()
def remove(name: Name, config: ConfigPath = None, socket: SocketPath = None) -> None:
    """Remove a camera, until the next reload or start."""
    from daemon.control_requests import CameraRemove

    typer.echo(f"{_asked(CameraRemove(name), config, socket)}: removed, until the next reload or start")


@camera_app.command()
def restart(name: Name, config: ConfigPath = None, socket: SocketPath = None) -> None:
    """Connect a camera anew."""
    from daemon.control_requests import CameraRestart

    typer.echo(f"{_asked(CameraRestart(name), config, socket)}: connecting anew")


def _asked(request: AnyRequest, config: Path | None, socket: Path | None) -> Any:
    from daemon.config import load_config
    from daemon.control_client import Control, connected

    with Control(socket) if socket else connected(load_config(config)) as control:
        return control.ask(request)


def _setting(text: str) -> tuple[str, Any]:
    """`max_fps=5`; the value is read as YAML, as in the configuration."""
    import yaml

    from engines.errors import UsageError

    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {key!r}: give KEY=VALUE, such as max_fps=5")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"--set {key}: its value is not valid YAML") from None


def _whole(source: str) -> str:
    """A file's path as the daemon, which runs elsewhere, finds it."""
    from daemon.sources import source_kind

    return str(Path(source).expanduser().absolute()) if source_kind(source) in ("video", "folder") else source


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    engines = ", ".join(sorted(set(found["engines"].values())))
    console.print(
        f"{found['instance']}  process {found['pid']}  {found['endpoint']}  engines {engines}"
        f"  people {found['people']}",
        highlight=False,
        markup=False,
    )
    table = Table(box=None)
    for heading in ("camera", "state", "in", "processed", "dropped", "waiting", "connections", "reason"):
        table.add_column(heading, overflow="fold")
    for camera in found["cameras"]:
        dropped = sum(camera["dropped"].values())
        numbers = (camera["frames_in"], camera["taken"], dropped, camera["waiting"], camera["connections"])
        table.add_row(camera["name"], camera["state"], *map(str, numbers), escape(camera["reason"] or ""))
    console.print(table)
