"""`mien faces ...`: from a face set to aligned folders, step by step; the command line finds it by its entry point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="From a face set to aligned folders: select, crop, align, look.",
    no_args_is_help=True,
)
Data = Annotated[
    Path,
    typer.Argument(
        help="A face set: CelebA's folder, an MTFL or MTCNN list, a zip with labels.csv, a folder for each person."
    ),
]
Folder = Annotated[Path, typer.Argument(help="The folder that all steps work in.")]
ALL_ALIGNMENTS = ["eyes", "eyes_nose", "similarity"]


@app.command()
def select(
    data: Data,
    folder: Folder,
    persons: Annotated[int, typer.Option(help="How many, the most photographed first; 0 is all.")] = 0,
    images: Annotated[int, typer.Option(help="Exactly so many of each person; 0 is all.")] = 0,
    total: Annotated[int, typer.Option(help="Images of all persons together; 0 is no limit.")] = 0,
    min_images: Annotated[
        int, typer.Option(help="Leave out persons with fewer that pass; 0: than --images, or 5.")
    ] = 0,
    min_interocular: Annotated[float, typer.Option(help="Distance of the eyes, px of the photograph.")] = 0,
    min_sharpness: Annotated[float, typer.Option(help="0.3 is a photograph, 0.08 is blurred.")] = 0,
    max_yaw: Annotated[float, typer.Option(help="0.6 is a head turned by 30 degrees; 0 takes any.")] = 0,
    min_score: Annotated[float, typer.Option(help="Of the detector; ours runs where the set has none.")] = 0,
    backend: Annotated[str, typer.Option(help="For our detector: auto, openvino, eager, ...")] = "auto",
    val_share: Annotated[float, typer.Option(help="Share of each person's images for validation.")] = 0.2,
    without: Annotated[Path | None, typer.Option(help="A selected.csv whose persons are left out.")] = None,
    seed: int = 281,
) -> None:
    """Choose images into selected.csv, train.csv and val.csv; rejected.csv says why the others were not taken."""
    from trainers import subset

    criteria = subset.Criteria(
        persons=persons,
        images=images,
        total=total,
        min_images=min_images,
        min_interocular=min_interocular,
        min_sharpness=min_sharpness,
        max_yaw=max_yaw,
        min_score=min_score,
        val_share=val_share,
        without=str(without or ""),
        seed=seed,
    )
    selection = subset.select(data, folder, criteria, backend)
    people = len({record.person for record in selection.kept})
    typer.echo(f"{folder / 'selected.csv'}: {len(selection.kept):,} images of {people:,} persons")
    for reason, count in selection.reasons().most_common():
        names = [file for file, _, why in selection.rejected if why == reason][: subset.NAMED]
        typer.echo(
            f"left out, {reason}: {count:,} ({', '.join(names)}{', ...' if count > len(names) else ''})"
        )


@app.command()
def crop(
    data: Data,
    folder: Folder,
    margin: Annotated[float, typer.Option(help="Side of the crop over the box's longer side.")] = 1.6,
    max_side: Annotated[int, typer.Option(help="Larger crops are shrunk to so many px.")] = 256,
) -> None:
    """Cut the selected faces out into FOLDER/crops, with cropped_landmarks.csv; report.csv lists what failed."""
    from trainers.crops import crop_selected

    _say(folder / "crops", crop_selected(data, folder, margin, max_side, _bar("cropping")))


@app.command()
def align(
    folder: Folder,
    by: Annotated[
        list[str] | None,
        typer.Option(help="eyes, eyes_nose or similarity; repeat it for several. Default: all."),
    ] = None,
    room: Annotated[
        int, typer.Option(help="px around the 112 px crop, for training to turn and shift it.")
    ] = 16,
) -> None:
    """Align FOLDER/crops into FOLDER/aligned: by two eyes, by eyes and nose, by similarity on five points."""
    from trainers.crops import align_crops

    for method, written in align_crops(folder, by or ALL_ALIGNMENTS, room, _bar("aligning")).items():
        _say(folder / "aligned" / method, written)


@app.command()
def look(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture, .png or .jpg.")] = Path("look.png"),
    count: Annotated[int, typer.Option(min=1, max=200, help="How many faces.")] = 12,
    predict: Annotated[
        bool, typer.Option("--predict", help="Also what the landmark network finds, points and heatmaps.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Another seed shows other faces.")] = 281,
    weights: Annotated[
        Path | None, typer.Option(help="A run's folder, to look at its landmarks; none: the shipped ones.")
    ] = None,
    backend: Annotated[str, typer.Option(help="For --predict: auto, openvino, eager, ...")] = "auto",
) -> None:
    """A picture of random faces of a set, or of FOLDER/crops: boxes, landmarks and heatmaps."""
    from trainers.look import look as draw

    shown, bad = draw(data, out, count, predict, seed, weights, backend)
    typer.echo(f"{out}: {shown} faces")
    for line in bad:
        typer.echo(f"left out: {line}")


def _say(folder: Path, written: Any) -> None:
    typer.echo(f"{folder}: {written.count:,} images")
    if written.failed:
        names = "; ".join(reason for _, reason in written.failed[:5])
        typer.echo(f"left out: {len(written.failed):,} ({names}); all are in {folder / 'report.csv'}")


def _bar(what: str) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A progress bar on a terminal's stderr, nothing elsewhere."""

    def tracked(items: Sequence[Any]) -> Any:
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        return track(items, what, console=console, disable=not console.is_terminal)

    return tracked
