"""MNN on its CPU backend, precision "high"."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals import cases
from benchmarks.rivals.engine import Engine, Export, Run
from benchmarks.rivals.engines.onnx_file import FILE as ONNX_FILE
from benchmarks.rivals.engines.onnx_file import INPUT, ONNX, RESULT

FILE = "model.mnn"


def export(folder: Path) -> None:
    """MNN's own converter."""
    tool = Path(sys.executable).with_name("mnnconvert")
    files = ["--modelFile", str(folder / ONNX_FILE), "--MNNModel", str(folder / FILE)]
    subprocess.run([str(tool), "-f", "ONNX", *files, "--bizCode", "x"], check=True, stdout=sys.stderr)


def load(folder: Path, threads: int) -> Run:
    """The shapes are fixed, so the module may plan ahead."""
    import MNN.expr as expr
    import MNN.nn as nn

    manager = nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": threads},))
    options = {"runtime_manager": manager, "shape_mutable": False, "rearrange": True}
    module = nn.load_module_from_file(str(folder / FILE), [INPUT], [RESULT], **options)
    x = cases.images(folder)
    placeholder = expr.placeholder(list(x.shape), expr.NCHW)
    placeholder.write(x)

    def run(kept: Any = manager) -> Any:
        return np.asarray(module.onForward([placeholder])[0].read())

    return run


# The package is built without AVX-512: there is nothing to limit.
_LIMITS: dict[str, dict[str, str]] = {"avx2": {}}
ENGINES = (Engine("mnn", "MNN", load, "mnn", (ONNX, Export("mnn", FILE, "mnn", export)), ("MNN",), limits=_LIMITS),)
