"""torch.compile with the weights frozen into the graph, on channels_last, inductor's faster layout for convolutions."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from benchmarks.rivals import cases
from benchmarks.rivals.engine import ONEDNN_AVX2, Engine, Run


def load(folder: Path, threads: int, mode: str | None) -> Run:
    """Compile in the worker, outside of anything timed."""
    import torch

    from mnv3_fast.testing.rivals import compile_frozen

    torch.set_num_threads(threads)
    model = cases.network(folder).to(memory_format=torch.channels_last)
    x = cases.image_tensor(folder).contiguous(memory_format=torch.channels_last)
    compiled = compile_frozen(model, x, mode)

    def run() -> Any:
        with torch.no_grad():  # as it was compiled: freezing is for no_grad, and inference_mode would compile again
            return compiled(x)

    return run


# The convolutions are oneDNN's, the rest C++ that inductor generates and ATen's own kernels.
_LIMITS = {"avx2": {**ONEDNN_AVX2, "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}}
ENGINES = tuple(
    Engine(key, name, functools.partial(load, mode=mode), packages=("torch", "torchvision"), limits=_LIMITS)
    for key, name, mode in (
        ("compile", "torch.compile, freezing", None),
        ("compile-max", "torch.compile, freezing, max-autotune", "max-autotune"),
    )
)
