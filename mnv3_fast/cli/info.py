"""``mnv3-fast info``: what is installed, what runs here, and what is missing."""

from __future__ import annotations

import platform
from typing import Annotated

import torch
import torchvision
import typer
from rich.box import SIMPLE
from rich.table import Table

from mnv3_fast import _library
from mnv3_fast._version import __version__
from mnv3_fast.cli.common import print_json, show
from mnv3_fast.gpu import cuda_library

EPILOG = """Examples:

mnv3-fast info

mnv3-fast info --json

mnv3-fast info --models

Ends with status 0."""


def info(
    models: Annotated[bool, typer.Option("--models", help="the table of all models instead")] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show versions, the kernels that were built, the instruction set in use, and what is missing; or all models."""
    from mnv3_fast.models.zoo import list_models

    if models:
        show_models(json)
        return
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
        "CUDA kernels": f"none: {reason}" if (reason := cuda_library.unusable_reason()) else str(cuda_library.FILE),
        "missing": None if _library.EXTENSION else f"compiled kernels: {_library.missing_reason()}",
        "models": list_models(),
    }
    if json:
        print_json(rows)
        return
    table = Table(show_header=False)
    for name, value in rows.items():
        if value not in (None, []):
            table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))
    show(table)


def show_models(json: bool) -> None:
    """Parameters, multiply-adds and published results of every model."""
    from mnv3_fast.models import table

    if json:
        print_json({"rule": table.RULE, "models": table.records()})
        return
    found = Table(*table.HEAD, caption=table.RULE, box=SIMPLE)
    for line in table.lines():
        found.add_row(*line)
    show(found)
