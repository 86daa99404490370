"""`mien doctor`: what is there, what is missing, what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    config: Annotated[
        Path | None, typer.Option(help="The configuration to look at.", show_default=False)
    ] = None,
) -> None:
    """Look at versions, devices, engines, codecs and the configuration, and say what to do."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from daemon.doctor import examine

    findings = examine(config)
    table = Table(box=None)
    for heading in ("", "subject", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}
    for finding in findings:
        table.add_row(marks[finding.verdict], finding.subject, escape(finding.found), escape(finding.remedy))
    Console().print(table)
    if any(finding.verdict == "wrong" for finding in findings):
        raise typer.Exit(1)
