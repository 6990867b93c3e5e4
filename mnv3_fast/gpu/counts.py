"""Which kernel of a layer is better by what was counted in the compiled code, where nobody has measured.

A launch takes the longest of five times, each of which it cannot go below: its bytes at the memory's bandwidth, what
its blocks bring from L2, its instructions at the issue rate, its matrix products at the tensor cores' rate, and what a
launch takes at least. The middle three are those of the multiprocessor that gets most blocks. What it waits for besides
is not known. benchmarks/gpu/model.py shows what comes of it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mnv3_fast.gpu.instructions import executed, tensor_operations
from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.gpu.traffic import traffic

if TYPE_CHECKING:
    from mnv3_fast.gpu.choice import Question

SCHEDULERS = 4
"""Warp instructions that a multiprocessor issues in a cycle (NVIDIA, CUDA C++ programming guide, compute capability
8.x and 9.0: four warp schedulers, one instruction each)."""
FROM_L2 = 64
"""Bytes that a multiprocessor takes from L2 in a cycle. NVIDIA's A100 whitepaper has 5120 for the chip, 64 for each of
80 slices of L2; that a multiprocessor takes as many as a slice gives, and that other GPUs are the same, is assumed."""
LAUNCH = 2.5e-6
"""Seconds that a launch in a CUDA graph takes at least. NVIDIA's "Getting Started with CUDA Graphs" (V100) has 0.5 us
beside a kernel of 2.9 us in a graph; a kernel that reads, computes and writes waits for memory twice, about 0.7 us each
time. Assumed: 2.5, the middle of 2 and 3."""
TENSOR = {80: 2048, 86: 512, 89: 512, 90: 4096, 100: 8192, 120: 512}
"""16-bit operations with fp32 accumulators of a multiprocessor in a cycle, by architecture: the rates in
benchmarks/gpu/gpus.py by clock and multiprocessors, the lower one where products of one architecture differ."""


@dataclass(frozen=True)
class Properties:
    """What a choice by counting follows from, of a GPU.

    Attributes:
        architecture: compute capability times ten: 80, 86, 89, 90, 100, 120.
        multiprocessors: their number.
        clock: in Hz.
        bandwidth: of its memory, in bytes a second.
        cache: bytes of L2; half of it holds what the launch before wrote.
        tensor: 16-bit operations a second with fp32 accumulators; 0: as usual for the architecture.
    """

    architecture: int
    multiprocessors: int
    clock: float
    bandwidth: float
    cache: int = 0
    tensor: float = 0.0

    @property
    def lanes(self) -> int:
        """Operations in fp32 of a multiprocessor in a cycle (programming guide, arithmetic instructions)."""
        return 64 if self.architecture <= 80 else 128


CLOCK, BANDWIDTH = 1.7e9, 1e12
"""Hz and bytes a second, the middle of benchmarks/gpu/gpus.py, for a device of which CUDA does not say them."""


def properties(device: torch.device) -> Properties:
    """Of a CUDA device, from torch; a bus moves two words a clock of its memory. Not every torch tells of clocks."""
    of = torch.cuda.get_device_properties(device)
    clock, memory, bus = (getattr(of, name, 0) for name in ("clock_rate", "memory_clock_rate", "memory_bus_width"))
    bandwidth = 2 * memory * 1e3 * bus / 8
    return Properties(
        of.major * 10 + of.minor, of.multi_processor_count, clock * 1e3 or CLOCK, bandwidth or BANDWIDTH,
        getattr(of, "L2_cache_size", 0),
    )  # fmt: skip


def better(question: Question, gpu: Properties) -> str:
    """ "cuda" or "triton": whose launches take less time; if both take as long, whose issue fewer instructions.

    Args:
        question: about a layer that both can compute.
        gpu: where.
    """
    from mnv3_fast.gpu import choice

    forced = choice.forced("depthwise_conv")  # which a block's layers follow
    return min(choice.VARIANTS, key=lambda variant: cost(question, gpu, variant, forced))


@functools.lru_cache(maxsize=4096)
def cost(question: Question, gpu: Properties, variant: str, forced: str | None = None) -> tuple[float, float]:
    """Seconds of a variant of a layer, and those that its instructions alone take."""
    from mnv3_fast.gpu.candidates import candidate  # which needs all ops, and these choices

    found = [times(launch, gpu) for launch in candidate(question, gpu, variant)]
    return sum(max(each.values()) for each in found), sum(each["issue"] for each in found)


def times(launch: AnyLaunch, gpu: Properties) -> dict[str, float]:
    """The seconds that a launch takes at least, by what binds it: memory, L2, issue, tensor, launch."""
    moved = traffic(launch)
    map_before = next((name for name in ("input", "sums", "hidden") if name in moved.unique), "")
    bytes_ = moved.unique_bytes
    if moved.unique.get(map_before, 0) <= gpu.cache // 2:
        bytes_ -= moved.unique.get(map_before, 0)
    total, fp32 = executed(launch, gpu.architecture)
    cycles = max(total, fp32 * 32 * SCHEDULERS / gpu.lanes)  # of a warp that its scheduler has for itself
    tensor = gpu.tensor / gpu.multiprocessors if gpu.tensor else _tensor(gpu.architecture) * gpu.clock
    blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
    most = -(-blocks // gpu.multiprocessors)
    return {
        "memory": bytes_ / gpu.bandwidth,
        "L2": most * sum(moved.brought.values()) / blocks / FROM_L2 / gpu.clock,
        "issue": max(1, most * launch.warps / SCHEDULERS) * cycles / gpu.clock,
        "tensor": most * tensor_operations(launch) / blocks / tensor,
        "launch": LAUNCH,
    }


def _tensor(architecture: int) -> int:
    older = [each for each in TENSOR if each <= architecture]
    return TENSOR[max(older) if older else min(TENSOR)]
