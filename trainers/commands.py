"""`mien train`, `mien evaluate` and `mien average`; the command line finds them by their entry points."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

RECIPES = ("detector", "landmarks", "recognition", "attributes", "ffhq", "expression")
ALL = "all"
CLOSED_SET = "closed_set"  # trains, and writes a table; it leaves no model for the chain
Recipe = Annotated[str, typer.Argument(help=f"{', '.join(RECIPES)}; train also knows {CLOSED_SET} and {ALL}")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Options of the recipe, such as data=FOLDER fit.epochs=3."),
]


def train(
    recipe: Recipe,
    settings: Settings = None,
    budget: Annotated[
        str | None, typer.Option(help="For `all`: the time that all recipes share, such as 90s, 8m or 1h30m.")
    ] = None,
) -> None:
    """Train a model, or resume where the run stopped; the checkpoint is left in the run's folder."""
    if recipe == ALL and not budget:
        raise typer.BadParameter("all needs a time to share, such as --budget 8m", param_hint="--budget")
    if recipe != ALL and budget:
        raise typer.BadParameter("is for `mien train all`; set fit.epochs here", param_hint="--budget")
    if recipe not in (ALL, CLOSED_SET):
        _check(recipe)
    from trainers.run_loggers import check_logger, default_logger

    settings, logger = settings or [], default_logger()
    if budget:
        from trainers.budget import train_all

        for name, folder in train_all(settings, budget, typer.echo, logger).items():
            typer.echo(f"checkpoint of {name}: {folder}")
    elif recipe == CLOSED_SET:
        from trainers.closed_set import ClosedSetConfig, train_closed_set
        from trainers.options import override

        settings = [f"fit.logger={logger}", *settings]
        check_logger(override(ClosedSetConfig(), settings).fit.logger)
        typer.echo(f"table: {train_closed_set(settings)}")
    else:
        from trainers.recipes import make_config, train_recipe

        check_logger(make_config(recipe, settings, logger).fit.logger)
        typer.echo(f"checkpoint: {train_recipe(recipe, settings, logger)}")


def evaluate(
    recipe: Recipe,
    settings: Settings = None,
    write_card: Annotated[
        Path | None, typer.Option(help="Put the figures into this checkpoint's card.md.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Draw the figures' pictures into this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure a model on held-out data, through the engines as they are used; 95 % intervals."""
    _check(recipe)
    from rich.console import Console
    from rich.table import Table

    from trainers.evaluation import evaluate_recipe, figures_json
    from trainers.recipes import check_card, put_into_card

    if write_card:
        check_card(recipe, write_card, settings or [])
    drawn = [f"plots={plots}"] if plots else []
    with contextlib.redirect_stdout(sys.stderr):
        figures = evaluate_recipe(recipe, [*(settings or []), *drawn])
    table = Table("figure", "value", title=f"mien evaluate {recipe}")
    for name, value in figures.items():
        table.add_row(name, str(value))
    if as_json:
        typer.echo(figures_json(figures))
    else:
        Console().print(table)
    if write_card:
        put_into_card(write_card, recipe, figures, settings or [])


def average(
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT...", help="Two folders or more.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for the mean, such as runs/mean/embedder.")
    ],
    data: Annotated[
        str,
        typer.Option(help="The data folder: a default threshold is chosen on it; else it is the mean, too."),
    ] = "",
) -> None:
    """The mean of the weights of several runs of one network: seeds, or a run and what it began with."""
    from trainers.averaging import average as averaged

    spec = averaged(checkpoints, out, data)
    said = "" if spec.threshold is None else f", threshold {spec.threshold}"
    typer.echo(f"checkpoint: {out}{said}")


def _check(recipe: str) -> None:
    if recipe not in RECIPES:
        raise typer.BadParameter(f"{recipe!r} is none of {', '.join(RECIPES)}", param_hint="RECIPE")
