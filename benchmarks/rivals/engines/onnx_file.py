"""The ONNX file that several engines read."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rivals import cases
from benchmarks.rivals.engine import Export

FILE, INPUT, RESULT = "model.onnx", "x", "y"


def export(folder: Path) -> None:
    """torch's exporter; BatchNorm is folded, hard-swish one operator."""
    import torch

    names = {"input_names": [INPUT], "output_names": [RESULT]}
    x = cases.image_tensor(folder)
    torch.onnx.export(cases.network(folder), (x,), folder / FILE, dynamo=True, external_data=False, **names)


ONNX = Export("onnx", FILE, "onnx", export)
