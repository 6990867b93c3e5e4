"""What a block costs beside its kernel, with warm caches: the parts of a call, each in its turn on a 1x1 map.

python -m benchmarks.models.block_overhead
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import mnv3_fast
from mnv3_fast import _library
from mnv3_fast.models.description import describe_block
from mnv3_fast.nn.base import run_entry
from mnv3_fast.ops.inverted_residual.op import OP

ROUNDS, CALLS = 60, 100


def least(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Microseconds a call, the least of many rounds in which each has its turn."""
    found = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            found[name] = min(found[name], (time.perf_counter() - start) / CALLS * 1e6)
    return found


def beside(block: nn.Module, x: Tensor) -> tuple[float, float]:
    """Microseconds inside of the kernel, and of the same calls beside it: medians over calls of the module."""
    inside, outside = [], []
    for _ in range(10 * CALLS):
        start = time.perf_counter()
        block(x)
        took = time.perf_counter() - start
        kernel = _library.extension().last_run()[1]
        inside.append(kernel * 1e6)
        outside.append((took - kernel) * 1e6)
    return statistics.median(inside), statistics.median(outside)


@torch.no_grad()
def main() -> None:
    """Print a line for each kind of block of the large network."""
    torch.set_num_threads(1)
    features = mnv3_fast.accelerate(torchvision.models.mobilenet_v3_large().eval(), inplace=True).features
    for index in (1, 2, 5, 13):
        block = features[index]
        description = describe_block(block)
        tensors, spec, constants = description.flatten()
        x = torch.randn(1, next(description.layers()).conv.in_channels, 1, 1)
        block(x)
        fusion = block.__dict__["_fusion"]
        entry = fusion.current(block)
        calls = {
            "module": lambda block=block, x=x: block(x),
            "raw op": lambda x=x, args=(tensors, spec, constants): OP(x, *args),
            "all looks": lambda fusion=fusion, block=block: fusion.current(block),
            "tensors and values": lambda fusion=fusion: fusion._packed[1].unchanged(fusion._flat_sources),
            "run_plan": lambda x=x, entry=entry: run_entry(x, entry),
        }
        times = least(calls)
        inside, outside = beside(block, x)
        words = "  ".join(f"{name} {value:.1f} us" for name, value in times.items())
        print(
            f"features.{index}, {len(tensors)} tensors:  {words}  kernel {inside:.1f} us  "
            f"beside the kernel {outside:.1f} us"
        )


if __name__ == "__main__":
    main()
