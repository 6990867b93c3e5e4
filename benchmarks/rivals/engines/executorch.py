"""ExecuTorch with the whole network on its XNNPACK backend."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rivals import cases
from benchmarks.rivals.engine import Engine, Export, Run

FILE = "model.pte"


def export(folder: Path) -> None:
    """torch.export, then lowered to XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(cases.network(folder), (cases.image_tensor(folder),))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (folder / FILE).write_bytes(lowered.to_executorch().buffer)


def load(folder: Path, threads: int) -> Run:
    """Its pool of threads is told how many it has before anything is loaded."""
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(threads)
    module = portable_lib._load_for_executorch(str(folder / FILE))
    x = cases.image_tensor(folder)
    return lambda: module.forward((x,))[0]


# XNNPACK asks the processor itself; nothing tells it to do with less.
_EXPORT = Export("executorch", FILE, "executorch", export)
ENGINES = (Engine("executorch", "ExecuTorch (XNNPACK)", load, "executorch", (_EXPORT,), ("executorch", "torch")),)
