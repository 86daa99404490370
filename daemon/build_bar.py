"""A bar for engines that must be built before a command can begin; nothing is shown where none must."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from engines.runtime import Progress as Told


@contextmanager
def building(console: Console) -> Iterator[Told]:
    """What load_engine tells, as one bar an engine: it runs until the next begins or the block ends.

    Off a terminal each is a plain line.
    """
    if not console.is_terminal:
        yield lambda words: console.print(words, markup=False, highlight=False, soft_wrap=True)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        running: list[TaskID] = []

        def done() -> None:
            for task in running:
                bars.update(task, total=1, completed=1)

        def tell(words: str) -> None:
            done()
            running.append(bars.add_task(words, total=None))

        yield tell
        done()
