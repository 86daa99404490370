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
    key: Annotated[Path | None, typer.Option(help="For an encrypted daemon: your .key_secret file.")] = None,
    server_key: Annotated[
        Path | None, typer.Option(help="The encrypted daemon's .key file; by default, that of the config.")
    ] = None,
) -> None:
    """Show a live table of who is where, and report lost events."""
    from contextlib import suppress

    from rich.console import Console

    from daemon import watch as watching
    from daemon.config import load_config
    from daemon.endpoints import from_here
    from daemon.keys import load_client
    from engines.errors import UsageError

    if endpoint is None:
        publish = load_config(config).publish
        endpoint = from_here(publish.endpoint)
        server_key = server_key or publish.server_key
        if server_key is not None and key is None:
            raise UsageError(
                f"{endpoint}: is encrypted; give --key, your .key_secret file (mien keys new NAME)"
            )
    curve = load_client(key, server_key)
    with suppress(KeyboardInterrupt):
        if lines:
            watching.write_lines(endpoint, limit, curve)
        else:
            watching.watch(endpoint, Console(), curve)
