"""`mien relay`: many daemons as one endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def relay(
    upstreams: Annotated[
        list[str], typer.Argument(metavar="ENDPOINT...", help="Where daemons (or other relays) publish.")
    ],
    bind: Annotated[str, typer.Option(help="Where to publish it all.")] = "tcp://127.0.0.1:5700",
    server_key: Annotated[
        Path | None, typer.Option(help="Publish encrypted: this relay's .key_secret file.")
    ] = None,
    allowed_clients: Annotated[
        Path | None, typer.Option(help="The folder with the .key files of those who may subscribe.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Take events from encrypted daemons: this relay's .key_secret file.")
    ] = None,
    upstream_key: Annotated[
        list[Path] | None,
        typer.Option(help="The daemon's .key file; once for all, or once for each ENDPOINT in their order."),
    ] = None,
    hwm: Annotated[int, typer.Option(min=1, help="Events kept for a slow subscriber.")] = 1000,
    allow_plaintext_beyond_loopback: Annotated[
        bool,
        typer.Option("--allow-plaintext-beyond-loopback", help="Let events leave this machine in the clear."),
    ] = False,
) -> None:
    """Join the events of many daemons at one endpoint, until stopped."""
    import threading

    from daemon.config import LogConfig
    from daemon.keys import load_client, load_server
    from daemon.notify import notify
    from daemon.relay import Relay, Upstream
    from daemon.signals import stop_on_signals
    from daemon.telemetry import configure_logging
    from engines.errors import UsageError

    configure_logging(LogConfig())
    servers: list[Path | None] = [*upstream_key] if upstream_key else [None]
    if len(servers) == 1:
        servers *= len(upstreams)
    if len(servers) != len(upstreams):
        raise UsageError("--upstream-key: give one for all, or as many as there are endpoints")
    joined = [
        Upstream(endpoint, load_client(key, server))
        for endpoint, server in zip(upstreams, servers, strict=True)
    ]
    stop = threading.Event()
    with (
        stop_on_signals(stop),
        Relay(
            joined,
            bind,
            hwm=hwm,
            curve=load_server(server_key, allowed_clients),
            allow_plaintext_beyond_loopback=allow_plaintext_beyond_loopback,
        ) as running,
    ):
        notify("READY=1")
        running.run(stop)
        notify("STOPPING=1")
