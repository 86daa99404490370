"""`mien classify`: the expression of each image's largest face, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def classify(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images, or folders of images.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A checkpoint's folder, or a .pt or .ckpt file; none: the shipped one."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the JSON here instead of to standard output.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="For the detector and landmarks: auto, openvino, eager, ...")
    ] = "auto",
    network: Annotated[
        str, typer.Option(help="The network of a .pt or .ckpt file that does not say: cnn, resnet18, ...")
    ] = "",
    whole: Annotated[
        bool, typer.Option("--whole", help="Take images as they are: they are aligned crops.")
    ] = False,
) -> None:
    """Classify images by expression; one that cannot be read is reported in its entry."""
    import json
    import sys
    from contextlib import nullcontext

    from rich.console import Console
    from rich.progress import track

    from daemon.build_bar import building
    from daemon.classify import Classifier, report, summary
    from daemon.images import expand_images
    from daemon.whole_file import whole_file

    images = list(expand_images(paths))
    console = Console(stderr=True)
    with whole_file(out) if out else nullcontext() as file:  # told before the work where it cannot be written
        with building(console) as progress:
            classifier = Classifier(checkpoint, network, backend, whole, progress)
        shown = track(images, "classifying", console=console, transient=True, disable=not console.is_terminal)
        entries = [classifier.image(path) for path in shown]
        text = json.dumps(report(classifier.name, paths, entries), indent=2)
        if file is None:
            print(text)
        else:
            file.write_text(text + "\n", encoding="utf-8")
    for entry in entries:
        if "error" in entry:
            print(f"error: {entry['error']}", file=sys.stderr)
    console.print(summary(classifier.labels, entries))
    if all("error" in entry for entry in entries):
        raise typer.Exit(1)
