"""``mnv3-fast info``: what is installed, what runs here, and what is missing."""

from __future__ import annotations

import platform

import torch
import torchvision
from rich.table import Table

from mnv3_fast import _library
from mnv3_fast._version import __version__
from mnv3_fast.cli.common import console


def info() -> None:
    """Show versions, the kernels that were built, the instruction set in use, and what is missing."""
    table = Table(show_header=False)
    rows = {
        "mnv3_fast": __version__,
        "torch, torchvision": f"{torch.__version__}, {torchvision.__version__}",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "threads": str(torch.get_num_threads()),
        "backend": _library.backend(),
    }
    if _library.EXTENSION:
        rows |= {
            "CPU features": ", ".join(_library.extension().cpu_features()),
            "instruction sets": ", ".join(_library.instruction_sets()),
            "in use": str(_library.instruction_set()),
        }
    else:
        rows["missing"] = f"compiled kernels: {_library.missing_reason()}"
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
