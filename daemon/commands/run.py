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
    """Watch the configured cameras and publish events, until stopped or every source is at its end.

    SIGTERM ends it in order, a second one at once; SIGHUP reads the configuration's cameras anew.
    """
    import os
    import sys
    import threading

    from daemon.config import Config, find_config, load_config
    from daemon.loading import load_pipeline, wait_for_gpu
    from daemon.pipelines import LoadedPipeline
    from daemon.service import Service
    from daemon.signals import stop_on_signals
    from daemon.telemetry import configure_logging

    path = config or find_config()
    configuration = load_config(path)
    configure_logging(configuration.log)
    stop, reload = threading.Event(), threading.Event()

    def load(settings: Config) -> LoadedPipeline:
        wait_for_gpu(settings, stop)
        return load_pipeline(settings)

    with stop_on_signals(stop, reload):
        service = Service(configuration, load, stop, config_path=path, reload=reload)
        service.run()
    # All is told and closed. The interpreter's own end took ten seconds where engines had been built (torch, and the
    # threads of OpenVINO's converter), and trips over a thread that hangs in a camera's driver.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
