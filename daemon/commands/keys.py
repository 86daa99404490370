"""`mien keys`: the keys of encrypted publishing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make keys for encrypted publishing.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Make keys for encrypted publishing (CURVE)."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose keys: letters, digits, '-', '_' and '.'.")],
    folder: Annotated[Path, typer.Option(help="Where to put the two files.")] = Path("keys"),
) -> None:
    """Make a key pair: NAME.key to give to others, NAME.key_secret to keep."""
    from daemon.keys import new_keys

    public, secret = new_keys(name, folder)
    typer.echo(f"{public}: public; a daemon that is to let {name} in needs it in publish.allowed_clients")
    typer.echo(f"{secret}: secret; keep it, give it to nobody")
