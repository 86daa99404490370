"""`mien train` and `mien evaluate`; the command line finds them by their entry points."""

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
    from trainers.run_loggers import default_logger

    settings, logger = settings or [], default_logger()
    if recipe == ALL:
        from trainers.budget import train_all

        if not budget:
            raise typer.BadParameter("all needs a time to share, such as --budget 8m", param_hint="--budget")
        for name, folder in train_all(settings, budget, typer.echo, logger).items():
            typer.echo(f"checkpoint of {name}: {folder}")
        return
    if budget:
        raise typer.BadParameter("is for `mien train all`; set fit.epochs here", param_hint="--budget")
    if recipe == CLOSED_SET:
        from trainers.closed_set import train_closed_set

        typer.echo(f"table: {train_closed_set([f'fit.logger={logger}', *settings])}")
        return
    _check(recipe)
    from trainers.recipes import train_recipe

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
    """Measure a model on held-out data, through the engines as they are used; 95 % bootstrap intervals."""
    _check(recipe)
    from rich.console import Console
    from rich.table import Table

    from trainers.evaluation import evaluate_recipe, figures_json
    from trainers.recipes import put_into_card

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
        put_into_card(write_card, recipe, figures)


def _check(recipe: str) -> None:
    if recipe not in RECIPES:
        raise typer.BadParameter(f"{recipe!r} is none of {', '.join(RECIPES)}", param_hint="RECIPE")
