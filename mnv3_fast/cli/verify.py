"""``mnv3-fast verify``: equality of every op and of both networks on this machine, planted faults included."""

from __future__ import annotations

import typer
from rich.table import Table

from mnv3_fast.cli.common import console


def verify() -> None:
    """Compare every op and both networks with torch on this machine. Ends with status 1 if anything differs."""
    from mnv3_fast.testing.verify import verify_models, verify_ops

    table = Table("what", "instruction set", "cases", "worst error", "limit", "")
    table.caption = "ops: worst error over its limit (2 x torch's own error + 4 eps); networks: relative L2"
    passed = True
    for rows in (verify_ops(), verify_models()):
        for row in rows:
            passed &= row.passed
            word = "found" if "planted" in row.name else "equal"
            mark = f"[green]{word}[/green]" if row.passed else "[red]MISS[/red]"
            table.add_row(row.name, row.instruction_set, str(row.cases), f"{row.error:.3g}", f"{row.limit:g}", mark)
    console.print(table)
    console.print("everything equal, every planted fault found" if passed else "[red]there are misses[/red]")
    if not passed:
        raise typer.Exit(1)
