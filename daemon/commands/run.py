"""`mien run`: the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    config: Annotated[
        Path | None,
        typer.Option(
            help="The configuration; by default $MIEN_CONFIG, ./config.yaml or /etc/mien/config.yaml.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Watch the configured cameras and publish events, until stopped or every source is at its end."""
    import threading

    from daemon.config import load_config
    from daemon.loading import load_pipeline
    from daemon.service import Service
    from daemon.signals import stop_on_signals
    from daemon.telemetry import configure_logging

    configuration = load_config(config)
    configure_logging(configuration.log)
    stop = threading.Event()
    with stop_on_signals(stop):
        Service(configuration, load_pipeline, stop).run()
