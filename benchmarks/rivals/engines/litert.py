"""LiteRT (formerly TensorFlow Lite) with its XNNPACK delegate, converted by litert-torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals import cases
from benchmarks.rivals.engine import Engine, Export, Run

FILE = "model.tflite"


def export(folder: Path) -> None:
    """Images are NHWC, the layout that XNNPACK computes in."""
    import litert_torch

    model = litert_torch.to_channel_last_io(cases.network(folder), args=[0]).eval()
    x = cases.image_tensor(folder).permute(0, 2, 3, 1).contiguous()
    litert_torch.convert(model, (x,)).export(str(folder / FILE))


def load(folder: Path, threads: int) -> Run:
    """The images are put into the input tensor once: the interpreter never overwrites its inputs."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / FILE), num_threads=threads)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(source["index"], np.ascontiguousarray(cases.images(folder).transpose(0, 2, 3, 1)))

    def run() -> Any:
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])

    return run


# XNNPACK asks the processor itself; nothing tells it to do with less.
_EXPORT = Export("litert", FILE, "litert", export)
ENGINES = (Engine("litert", "LiteRT (XNNPACK)", load, "litert", (_EXPORT,), ("ai-edge-litert", "litert-torch")),)
