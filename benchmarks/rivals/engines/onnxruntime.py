"""ONNX Runtime on its CPU provider."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rivals import cases
from benchmarks.rivals.engine import Engine, Run
from benchmarks.rivals.engines.onnx_file import FILE, INPUT, ONNX


def load(folder: Path, threads: int) -> Run:
    """A session with all graph optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])
    feed = {INPUT: cases.images(folder)}
    return lambda: session.run(None, feed)[0]


# Its kernels ask the processor itself; nothing tells them to do with less.
ENGINES = (Engine("onnxruntime", "ONNX Runtime", load, "onnxruntime", (ONNX,), ("onnxruntime",)),)
