"""``mnv3-fast info``: what is installed, what runs here, and what is missing."""

from __future__ import annotations

import platform
from typing import Annotated

import torch
import torchvision
import typer
from rich.table import Table

from mnv3_fast import _library
from mnv3_fast._version import __version__
from mnv3_fast.cli.common import print_json, show

EPILOG = """Examples:

mnv3-fast info

mnv3-fast info --json

Ends with status 0."""


def info(json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Show versions, the kernels that were built, the instruction set in use, and what is missing."""
    from mnv3_fast.cli.models import model_names

    rows = {
        "mnv3_fast": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "threads": torch.get_num_threads(),
        "backend": _library.backend(),
        "CPU features": list(_library.extension().cpu_features()) if _library.EXTENSION else [],
        "instruction sets": list(_library.instruction_sets()),
        "in use": _library.instruction_set(),
        "missing": None if _library.EXTENSION else f"compiled kernels: {_library.missing_reason()}",
        "models": model_names(),
    }
    if json:
        print_json(rows)
        return
    table = Table(show_header=False)
    for name, value in rows.items():
        if value not in (None, []):
            table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))
    show(table)
