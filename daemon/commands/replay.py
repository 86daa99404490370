"""`mien replay`: videos through the whole chain, to events, an annotated video and a summary."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.commands.shared_options import Backend, ConfigPath

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.pipelines import LoadedPipeline
    from daemon.replay_job import ReplayJob


class Speed(StrEnum):
    """How fast frames come."""

    max = "max"
    realtime = "realtime"


def replay(
    videos: Annotated[
        list[str], typer.Argument(metavar="VIDEO...", help="Video files, or folders of images.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write the events here, as JSON lines.")] = None,
    annotate: Annotated[
        Path | None, typer.Option(help="Write the annotated video here (.mp4); for several videos, a folder.")
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Publish the events as the daemon does.")
    ] = False,
    endpoint: Annotated[str | None, typer.Option(help="Where to publish, instead of the config's.")] = None,
    speed: Annotated[Speed, typer.Option(help="As fast as it goes, or as fast as it was.")] = Speed.max,
    every_frame: Annotated[
        bool,
        typer.Option("--every-frame", help="Name and read every face in every frame, not only when due."),
    ] = False,
    empty_frames: Annotated[
        bool, typer.Option("--empty-frames", help="Tell of frames without a face, too.")
    ] = False,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Put embeddings into the events.")] = False,
    start_time: Annotated[
        str | None,
        typer.Option(help="When the first frame was taken, RFC 3339; by default 1970-01-01T00:00:00Z."),
    ] = None,
    detector_size: Annotated[
        tuple[int, int] | None, typer.Option(help="Width and height the detector works at.")
    ] = None,
    gallery: Annotated[Path | None, typer.Option(help="The gallery of enrolled people.")] = None,
    backend: Backend = None,
    config: ConfigPath = None,
) -> None:
    """Replay videos frame by frame: who was seen, from when to when."""
    from daemon.replay import replay_cameras
    from daemon.replay_job import ReplayJob, parsed_start
    from daemon.settings import camera_template, effective
    from daemon.telemetry import configure_logging

    changes: dict[str, dict[str, object]] = {
        "gallery": {"path": gallery},
        "engines": {"backend": backend},
        "publish": {
            "endpoint": endpoint,
            "embeddings": embeddings or None,
            "empty_frames": empty_frames or None,
        },
    }
    settings = effective(config, changes)
    configure_logging(settings.log)
    template = camera_template(detector_size=detector_size, speed=speed.value)
    job = ReplayJob(
        config=settings.model_copy(update={"cameras": tuple(replay_cameras(videos, template))}),
        out=out,
        annotated=annotate,
        publish=publish or endpoint is not None,
        start=parsed_start(start_time),
    )
    if _replayed(job, every_frame=every_frame) < len(videos):
        raise typer.Exit(1)


def _replayed(job: ReplayJob, *, every_frame: bool) -> int:
    """Does it and shows who was seen; returns how many videos could be replayed."""
    from rich.console import Console

    from daemon.build_bar import building
    from daemon.loading import load_pipeline
    from daemon.replay_summary import speed_line, summary_table

    def load(config: Config) -> LoadedPipeline:
        with building(Console(stderr=True)) as progress:
            return load_pipeline(config, every_frame=every_frame, progress=progress)

    results = job.run(load, Console(stderr=True))
    console = Console()
    for result in results:
        console.print(summary_table(result, job.start))
        console.print(speed_line(result), highlight=False)
    for written, path in (("events", job.out), ("annotated video", job.annotated)):
        if path is not None:
            console.print(f"{written}: {path}", markup=False, highlight=False, soft_wrap=True)
    return len(results)
