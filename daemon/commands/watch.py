"""`mien watch`: who is where, live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    endpoint: Annotated[
        str | None, typer.Argument(help="Where a daemon publishes; by default, the endpoint of the config.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The config to take the endpoint from.")] = None,
    lines: Annotated[bool, typer.Option("--jsonl", help="Write the events as JSON lines instead.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="With --jsonl: end after so many events.")] = None,
) -> None:
    """Show a live table of who is where, and report lost events."""
    from contextlib import suppress

    from rich.console import Console

    from daemon import watch as watching
    from daemon.config import load_config

    endpoint = endpoint or load_config(config).publish.endpoint
    with suppress(KeyboardInterrupt):
        if lines:
            watching.write_lines(endpoint, limit)
        else:
            watching.watch(endpoint, Console())
