"""`python -m trainers train RECIPE ...`: the commands of `mien` that train, where only the trainers' packages are."""

import sys

import typer

from engines.errors import MienError, UsageError
from trainers.commands import average, evaluate, train


def main() -> None:
    app = typer.Typer(no_args_is_help=True, add_completion=False)
    app.command()(train)
    app.command()(evaluate)
    app.command()(average)
    try:
        app()
    except MienError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None


if __name__ == "__main__":
    main()
