"""`mien bench`: how fast each stage and the whole chain are on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.commands.shared_options import Backend, ConfigPath

CLIP = Path(__file__).parents[2] / "samples" / "two_people.mp4"


def bench(
    clip: Annotated[
        Path | None, typer.Argument(help="A video with faces; by default the shipped one.")
    ] = None,
    backend: Backend = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, f32, f16, bf16, int8 or mixed.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads for inference; 0: all.", min=0)] = None,
    seconds: Annotated[float, typer.Option(help="How long each of the 16 measurements takes.")] = 2.0,
    batch: Annotated[int, typer.Option(help="Faces a call where they are batched.", min=1)] = 16,
    cameras: Annotated[int, typer.Option(help="Frames a call where they are batched.", min=1)] = 4,
    detector_size: Annotated[
        tuple[int, int] | None, typer.Option(help="Width and height the detector works at.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    config: ConfigPath = None,
) -> None:
    """Measure stages and whole chain: latency, throughput, memory; engines that are missing are built first."""
    import json

    from rich.console import Console

    from daemon.bench import Bench
    from daemon.bench_tables import show
    from daemon.build_bar import building
    from daemon.settings import camera_template, effective
    from daemon.sources import probe_video
    from engines.errors import UsageError
    from engines.runtime import load_face_engines

    if not 0 < seconds <= 600:
        raise UsageError(f"--seconds {seconds:g}: must be above 0 and at most 600")
    if clip is None and not CLIP.is_file():
        raise UsageError("the shipped clip is not here; name a video with faces: mien bench VIDEO")
    video = clip or CLIP
    probe_video(video)
    wanted = {"backend": backend, "device": device, "precision": precision, "threads": threads}
    # Embeddings are asked for, or with an empty gallery nobody would be embedded.
    settings = effective(config, {"engines": wanted, "publish": {"embeddings": True}})
    camera = camera_template(detector_size=detector_size)
    console = Console(stderr=True)
    with building(console) as progress:
        engines = load_face_engines(
            **settings.engines.for_faces(), detector_size=camera.detector_size, progress=progress
        )
    with console.status("measuring") as status:
        found = Bench(
            video, engines, settings, camera, seconds, batch, cameras, lambda words: status.update(words)
        ).run()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        show(found, Console())
