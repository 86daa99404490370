"""`mien train` and `mien evaluate`; the command line finds them by their entry points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RECIPES = ("detector", "landmarks", "recognition", "attributes")
Recipe = Annotated[str, typer.Argument(help=", ".join(RECIPES))]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Options of the recipe, such as data=FOLDER fit.epochs=3."),
]


def train(recipe: Recipe, settings: Settings = None) -> None:
    """Train a model, or resume where the run stopped; the checkpoint is left in the run's folder."""
    _check(recipe)
    from trainers.recipes import train_recipe

    typer.echo(f"checkpoint: {train_recipe(recipe, settings or [])}")


def evaluate(
    recipe: Recipe,
    settings: Settings = None,
    write_card: Annotated[
        Path | None, typer.Option(help="Put the figures into this checkpoint's card.md.")
    ] = None,
) -> None:
    """Measure a model on held-out data, through the engines as they are used."""
    _check(recipe)
    from rich.console import Console
    from rich.table import Table

    from trainers.evaluation import evaluate_recipe
    from trainers.recipes import put_into_card

    figures = evaluate_recipe(recipe, settings or [])
    table = Table("figure", "value", title=f"mien evaluate {recipe}")
    for name, value in figures.items():
        table.add_row(name, value)
    Console().print(table)
    if write_card:
        put_into_card(write_card, recipe, figures)


def _check(recipe: str) -> None:
    if recipe not in RECIPES:
        raise typer.BadParameter(f"{recipe!r} is none of {', '.join(RECIPES)}", param_hint="RECIPE")
