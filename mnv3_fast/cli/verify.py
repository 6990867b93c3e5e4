"""``mnv3-fast verify``: equality of every op and of both networks on this machine, planted faults included."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated

import typer
from rich.table import Table

from mnv3_fast.cli.common import MISS, console, errors, print_json, show

EPILOG = """Examples:

mnv3-fast verify

mnv3-fast verify --json

Ends with status 0 if everything is equal and every planted fault is found, else 1."""


def verify(json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Compare every op and both networks with torch on this machine, planted faults included. Takes some minutes."""
    from mnv3_fast.testing.verify import model_rows, op_rows

    rows = []
    for row in itertools.chain(op_rows(), model_rows()):
        rows.append(row)
        state = "as it should be" if row.passed else "MISS"
        errors.print(f"{row.name} {row.instruction_set}".strip() + f": {state}", highlight=False, soft_wrap=True)
    passed = all(row.passed for row in rows)
    if json:
        print_json({"passed": passed, "rows": [dataclasses.asdict(row) for row in rows]})
    else:
        table = Table("what", "instruction set", "cases", "worst error", "limit", "")
        table.caption = "ops: worst error over its limit (2 x torch's own error + 4 eps); networks: relative L2"
        for row in rows:
            word = "found" if "planted" in row.name else "equal"
            mark = f"[green]{word}[/green]" if row.passed else "[red]MISS[/red]"
            table.add_row(row.name, row.instruction_set, str(row.cases), f"{row.error:.3g}", f"{row.limit:g}", mark)
        show(table)
        console.print("everything equal, every planted fault found" if passed else "[red]there are misses[/red]")
    if not passed:
        raise typer.Exit(MISS)
