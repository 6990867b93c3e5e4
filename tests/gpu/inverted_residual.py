"""Inverted residual blocks by their CUDA kernels in the simulator, from the raw op's arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.launch import CudaLaunch
from mnv3_fast.gpu.packing import pack_block
from mnv3_fast.ops.elements import as_nhwc, convolved_size, empty_nhwc, resolve_window
from mnv3_fast.ops.inverted_residual import cuda_kernel
from mnv3_fast.ops.inverted_residual.layout import unflatten
from tests.gpu.simulator import build
from tests.gpu.simulator.run import run

WRITTEN = {"inverted_residual": ("output", "parts"), "gated_project": ("output",)}
CHANGED = {"inverted_residual": (), "gated_project": ("partials", "arrivals")}
"""What each kernel writes whole, and what it writes in part."""


@dataclass
class Outcome:
    """What the launches of a block gave; ``faults`` is empty if all is well."""

    output: Tensor
    launches: list[CudaLaunch]
    statuses: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def is_known(input: Tensor, tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]) -> bool:
    """Whether there are kernels for the raw op's arguments, of any dtype."""
    block = unflatten(tensors, spec, constants)
    kernel = tuple(block.depthwise.weight.shape[2:])
    hidden = block.depthwise.weight.shape[0] if block.expand else 0
    squeeze = block.squeeze_excite[0].shape[0] if block.squeeze_excite else 0
    window = resolve_window(input.shape[2:], kernel, spec[5:13])
    return cuda_kernel.is_known(
        torch.float16, input.shape, kernel, window, hidden, squeeze, block.project.weight.shape[0]
    )


def launches_of(
    input: Tensor, tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]
) -> tuple[list[CudaLaunch], Tensor]:
    """The launches of a block on memory of their own, and its output."""
    packed = cuda_kernel.pack(pack_block(tensors, spec, constants, input.dtype))
    x, size = as_nhwc(input), convolved_size(input.shape[2:], packed.kernel, packed.window)
    output = empty_nhwc(x, x.shape[0], packed.outputs, *size)
    arena = Arena(torch.device("cpu"))
    cuda_kernel.launches(packed, x, output, arena)
    arena.allocate()
    return cuda_kernel.launches(packed, x, output, arena), output


def simulated(
    launches: Sequence[CudaLaunch],
    output: Tensor,
    damage: Mapping[str, build.Damage] | None = None,
    wrong: Mapping[str, int] | None = None,
) -> Outcome:
    """Run a block's launches one behind the other; after a fault no more.

    Args:
        launches, output: of :func:`launches_of`.
        damage: changes the source of the first one's kernel, by dtype.
        wrong: numbers that the first one is told in place of its own, by field.
    """
    outcome = Outcome(output, list(launches))
    for i, launch in enumerate(launches):
        name = launch.kernel.name
        program = build.inverted_residual(damage) if i == 0 else build.gated_project()
        written = [each for each in WRITTEN[name] if launch.arguments[each] is not None]
        done = run(program, launch, written, wrong if i == 0 else None, CHANGED[name])
        outcome.statuses.append(done.status)
        outcome.faults += done.faults
        if done.status or done.faults:
            break
    return outcome
