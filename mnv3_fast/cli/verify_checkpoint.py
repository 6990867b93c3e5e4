"""``mnv3-fast verify --checkpoint``: what is wrong with a file."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.table import Table
from rich.text import Text

from mnv3_fast.cli.common import MISS, console, fail, print_json, show


def verify_checkpoint(source: str, model: str | None, json: bool) -> None:
    """Print the findings; ends with status 1 if there are any, 2 if the file cannot be read."""
    from mnv3_fast.checkpoints.diagnosis import diagnose
    from mnv3_fast.checkpoints.recognition import open_checkpoint

    try:
        found = diagnose(open_checkpoint(source), model)
    except (ValueError, OSError) as error:
        fail(str(error))
    if json:
        print_json({"passed": not found.findings, "checkpoint": source, **asdict(found)})
    else:
        taken = f"taken for {found.variant}, {found.why}" if found.variant else found.why
        line = f"{source}: {found.family}'s names, {taken}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
        if found.findings:
            table = Table("code", "layer", "what came", "what is wanted")
            for finding in found.findings:
                table.add_row(*(Text(value).markup for value in asdict(finding).values()))
            show(table)
        console.print("nothing found" if not found.findings else f"{len(found.findings)} findings", highlight=False)
    if found.findings:
        raise typer.Exit(MISS)
