"""``python -m tests.gpu.artefacts``: what the kernels of both networks are compiled to, as a Markdown table.

Every specialisation that a pass of mobilenet_v3_large or small needs, at batch 1 and 128, for each architecture. Nothing
is run: a network is walked with tensors that have no memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

import mnv3_fast
from mnv3_fast.gpu.launch import Launch
from mnv3_fast.gpu.network import Network
from mnv3_fast.models.description import describe_net
from tests.gpu.compile import compile_launch
from tests.gpu.sass import MULTIPROCESSORS, Artefact, inspect

NETS = ("large", "small")
BATCHES = (1, 128)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
ARCHITECTURES = tuple(MULTIPROCESSORS)
AMD = ("gfx942", "gfx1100")
ISSUE_BUDGET = {1: 35, 2: 89}
"""Instructions an output that a depthwise convolution may issue and stay bound by memory on an H100, by stride."""
IN_FLIGHT = 18 << 10
"""Bytes under way on a multiprocessor of an H100 that keep its memory busy: 3.35 TB/s times 700 ns over 132 of them."""
MATRIX_KERNELS = ("pointwise_conv_kernel", "stem_conv_kernel", "squeeze_excite_gate_kernel")
NARROW = {
    "stem_conv_kernel": "the image has 3 channels",
    "squeeze_excite_gate_kernel": "8 to 24 squeezed channels a row",
}
"""Kernels that read something other than maps of a multiple of 8 channels."""


@dataclass
class Specialisation:
    """One compilation, and the launches of the networks that it serves."""

    launch: Launch
    uses: dict[str, int] = field(default_factory=dict)
    """Launches of a pass, by network."""

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self.launch.kernel.__name__

    def label(self) -> str:
        """The kernel and the constants that tell its compilations apart."""
        of = self.launch.constants
        words = ""
        if self.kernel == "depthwise_conv_kernel":
            words = f"{of['KERNEL_H']}x{of['KERNEL_W']} step {of['STEP_W']} tile {of['TILE_H']}x{of['TILE_W']}"
        elif "TILE_M" in of:
            words = f"{of['TILE_M']}x{of['TILE_N']}x{of['TILE_K']}"
        flags = [name.lower() for name in ("GATE", "SUMS", "RESIDUAL") if of.get(name) is True]
        activation = ("", "relu", "hardswish")[of.get("ACTIVATION", 0)]
        return " ".join(part for part in (self.kernel.removesuffix("_kernel"), words, activation, *flags) if part)


def network_launches(net: str, dtype: torch.dtype, batch: int, size: int = 224) -> list[Launch]:
    """The launches of a pass of a network over images without memory."""
    model = getattr(mnv3_fast, f"mobilenet_v3_{net}")(weights=None).eval()
    network = Network(describe_net(model).stages(), dtype)
    image = torch.empty(batch, 3, size, size, dtype=dtype, device="meta")
    arena = network.arena(image)
    arena.buffers = {}  # sizes were counted and nothing is kept: what is taken has no memory
    output = torch.empty(network.output_shape(image.shape), dtype=dtype, device="meta")
    return network.launches(image, output, arena)


def specialisations(dtype: str) -> list[Specialisation]:
    """The compilations that both networks need in a dtype, in the order of their first use."""
    found: dict[tuple, Specialisation] = {}
    for batch in BATCHES:
        for net in NETS:
            for launch in network_launches(net, DTYPES[dtype], batch):
                special = found.setdefault(compile_key(launch), Specialisation(launch))
                if batch == BATCHES[-1]:
                    special.uses[net] = special.uses.get(net, 0) + 1
    return list(found.values())


def compile_key(launch: Launch) -> tuple:
    """Equal for launches that one compilation serves, by Triton's own binder."""
    from tests.gpu.compile import specialise

    _, _, options, signature, constants, attributes = specialise(launch)
    return launch.kernel.__name__, str(signature), str(constants), str(attributes), str(options)


def artefact(special: Specialisation, architecture: int) -> Artefact:
    """Compile for an NVIDIA architecture and read the result."""
    return inspect(compile_launch(special.launch, architecture), architecture)


def instructions_per_output(special: Specialisation, made: Artefact) -> float | None:
    """Instructions that a thread issues by the outputs that it computes; None where that says nothing."""
    constants, arguments = special.launch.constants, special.launch.arguments
    if special.kernel == "depthwise_conv_kernel":
        outputs = constants["TILE_H"] * constants["TILE_W"] * constants["VECTOR"]
        return made.executed(constants["KERNEL_H"] - constants["TILE_H"] + 1) / outputs
    if special.kernel == "pointwise_conv_kernel" and len(made.loops) == 1:
        rounds = -(-arguments["inputs"] * constants["UNIT_K"] // constants["TILE_K"])
        return made.executed(rounds) * made.threads / (constants["TILE_M"] * constants["TILE_N"])
    return None


def budget(special: Specialisation) -> int | None:
    """The instructions an output that the kernel may issue; None where memory is not what it competes with."""
    if special.kernel != "depthwise_conv_kernel":
        return None
    return ISSUE_BUDGET[special.launch.constants["STEP_W"]]


HEADER = (
    "kernel", "launches large/small", "sm", "registers", "spills", "shared", "occupancy", "limit", "loads 128/narrower",
    "stores 128/narrower", "tensor core", "instructions", "per output", "budget", "KB in flight",
)  # fmt: skip


def row(special: Specialisation, architecture: int) -> list[str]:
    """A line of the table."""
    made = artefact(special, architecture)
    each, most = instructions_per_output(special, made), budget(special)
    return [
        special.label(), f"{special.uses.get('large', 0)}/{special.uses.get('small', 0)}", str(architecture),
        str(made.registers), str(made.stack + made.local + made.spills), f"{made.shared / 1024:.1f} KB",
        f"{100 * made.occupancy:.0f}%", made.limit, f"{made.wide_loads}/{made.narrow_loads}",
        f"{made.wide_stores}/{made.narrow_stores}", str(made.matrix_products or "-"), str(made.instructions),
        f"{each:.1f}" if each else "-", str(most or "-"), f"{made.in_flight / 1024:.0f}",
    ]  # fmt: skip


def table(dtype: str, architectures: Sequence[int]) -> str:
    """The Markdown table of a dtype."""
    lines = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    for special in specialisations(dtype):
        lines += [f"| {' | '.join(row(special, architecture))} |" for architecture in architectures]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser("python -m tests.gpu.artefacts", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=list(DTYPES), action="append", help="default: fp16")
    parser.add_argument("--sm", type=int, choices=ARCHITECTURES, action="append", help="default: all")
    options = parser.parse_args(arguments)
    for dtype in options.dtype or ["fp16"]:
        count = len(specialisations(dtype))
        print(f"{dtype}: {count} compilations for both networks; in flight: {IN_FLIGHT >> 10} KB keep an H100 busy\n")
        print(table(dtype, options.sm or ARCHITECTURES) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
