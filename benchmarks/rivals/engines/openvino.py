"""OpenVINO on its CPU plugin, in float32, told to answer one request as soon as it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.rivals import cases
from benchmarks.rivals.engine import ONEDNN_AVX2, Engine, Run
from benchmarks.rivals.engines.onnx_file import FILE, ONNX


def load(folder: Path, threads: int) -> Run:
    """Input and output in place, without a copy."""
    import openvino

    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # else it takes bfloat16 where the processor has it
    }
    request = core.compile_model(core.read_model(folder / FILE), "CPU", options).create_infer_request()
    x = cases.images(folder)
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

    def run(kept: Any = x) -> Any:
        request.infer()
        return request.get_output_tensor().data

    return run


# The plugin's own kernels and those of its oneDNN are told apart, and must agree.
_LIMITS = {"avx2": {**ONEDNN_AVX2, "OV_CPU_MAX_ISA": "AVX2"}}
ENGINES = (Engine("openvino", "OpenVINO", load, "openvino", (ONNX,), ("openvino",), limits=_LIMITS),)
