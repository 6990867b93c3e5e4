"""What a block costs beside its kernel: the module, the raw op and ``run_plan`` alone, in turn on a 1x1 map.

python -m benchmarks.models.block_overhead
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision

import mnv3_fast
from mnv3_fast.engine.op import OP as RUN_PLAN
from mnv3_fast.models.description import describe_block
from mnv3_fast.ops.inverted_residual.op import OP, packed

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
        entry = packed(tensors, spec, constants)
        calls = {
            "module": lambda block=block, x=x: block(x),
            "op": lambda x=x, args=(tensors, spec, constants): OP(x, *args),
            "cache": lambda args=(tensors, spec, constants): packed(*args),
            "run_plan": lambda x=x, entry=entry: RUN_PLAN(x, entry.plan, entry.geometry),
        }
        times = least(calls)
        words = "  ".join(f"{name} {value:5.1f} us" for name, value in times.items())
        beside = times["module"] - times["run_plan"]
        print(f"features.{index}, {len(tensors)} tensors:  {words}  beside {beside:5.1f} us")


if __name__ == "__main__":
    main()
