"""Our layers and the two lines above them, measured in the same run."""

from __future__ import annotations

import time
from typing import Any

import torch

from mnv3_fast.testing.cases import real_case
from mnv3_fast.testing.compare import op_module, prepared
from mnv3_fast.testing.layers import RealLayer, real_layers
from mnv3_fast.testing.measure import fma_peak, interleave, pinned

OPS = ("stem_conv", "pointwise_conv", "depthwise_conv", "inverted_residual")
SECONDS_A_LAYER = 0.05


def measure() -> dict[str, Any]:
    """Convolutions and whole blocks at batch 1 on one core."""
    layers = {f"{net}.{layer.name}": layer for net in ("large", "small") for layer in real_layers(net)}
    layers = {name: layer for name, layer in layers.items() if layer.op in OPS}
    with pinned(1), torch.inference_mode():
        runs = {name: _run(name, layer) for name, layer in layers.items()}
        timings = interleave(runs, SECONDS_A_LAYER * len(runs), rounds=5)
        peak, bandwidth = fma_peak(), _bandwidth()
    found = [
        {"name": name, "op": layer.op, "macs": layer.macs(), "bytes": layer.bytes(), "seconds": timings[name].median}
        for name, layer in layers.items()
    ]
    return {"layers": found, "fma_peak": peak, "bandwidth": bandwidth}


def _run(name: str, layer: RealLayer) -> Any:
    args, op = prepared(real_case(layer, net=name.partition(".")[0])), op_module(layer.op).OP
    return lambda: op(*args)


def _bandwidth() -> float:
    """GB/s that one core reads from memory."""
    memory = torch.ones(1 << 26)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        memory.sum()
        times.append(time.perf_counter() - start)
    return 4e-9 * memory.numel() / min(times)
