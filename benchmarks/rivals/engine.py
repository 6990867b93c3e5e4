"""What an engine is: how its model is made, how it is loaded, what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Run = Callable[[], Any]
"""One pass over the case's images; the output as anything that numpy reads without a copy."""

ONEDNN_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


@dataclass(frozen=True)
class Export:
    """One step towards the file that an engine reads.

    ``run(folder)`` reads and writes in the folder of a case; ``file`` is what it leaves there. ``environment`` names
    its requirements file, None is the environment of the project.
    """

    name: str
    file: str
    environment: str | None
    run: Callable[[Path], None]


@dataclass(frozen=True)
class Engine:
    """One row of the tables.

    ``load(folder, threads)`` runs in a process of its own that is already pinned to its processors. ``limits`` says for
    an instruction set which environment variables keep the engine to it; an engine without an entry runs with all
    that the processor has, and its row says so.
    """

    key: str
    name: str
    load: Callable[[Path, int], Run]
    environment: str | None = None
    exports: tuple[Export, ...] = ()
    packages: tuple[str, ...] = ()
    note: str = ""
    ours: bool = False
    limits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def environments(self) -> tuple[str, ...]:
        """All that must be installed for it."""
        names = [export.environment for export in self.exports] + [self.environment]
        return tuple(dict.fromkeys(name for name in names if name is not None))
