"""`mien config`: check the configuration, or show what is in effect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Check or show the configuration.", no_args_is_help=True)

ConfigPath = Annotated[
    Path | None,
    typer.Argument(
        help="The file; by default $MIEN_CONFIG, ./config.yaml or /etc/mien/config.yaml.", show_default=False
    ),
]


@app.command()
def check(path: ConfigPath = None) -> None:
    """Report every mistake in the configuration, or say that it is in order."""
    from daemon.config import find_config, load_config

    config = load_config(path)
    used = path or find_config()
    names = ", ".join(camera.name for camera in config.cameras if camera.enabled) or "none"
    typer.echo(f"{used or 'no config file, all defaults'}: in order; cameras: {names}")


@app.command()
def show(path: ConfigPath = None) -> None:
    """Print the effective configuration as YAML, with credentials hidden."""
    import yaml

    from daemon.config import load_config, shown

    typer.echo(yaml.safe_dump(shown(load_config(path)), sort_keys=False, allow_unicode=True), nl=False)
