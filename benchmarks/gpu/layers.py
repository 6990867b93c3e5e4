"""``python -m benchmarks.gpu.layers``: the kernel of each layer of both nets, what it moves, issues and should take.

Choices and times are those of mnv3_fast/gpu/counts.py, with the library of CUDA kernels. Where GPUs choose differently,
a layer has a row for each choice, and a time where it is the choice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.gpu.gpus import GPU, GPUS
from benchmarks.gpu.instructions import ARCHITECTURES, BATCHES, DTYPE, NETS, depthwise_launches
from benchmarks.gpu.model import name_of, ours, passes
from mnv3_fast.gpu import choice
from mnv3_fast.gpu.choice import Question
from mnv3_fast.gpu.counts import better, cost, times
from mnv3_fast.gpu.instructions import dtype_of, executed, label
from mnv3_fast.gpu.launch import AnyLaunch, CudaLaunch
from mnv3_fast.gpu.network import Network
from mnv3_fast.gpu.packing import Block
from mnv3_fast.gpu.traffic import traffic
from mnv3_fast.testing.gpu_bench.levels import Layer, layers_of, stages_of

COUNTED = 90
"""The architecture whose instructions the table shows."""
WHOLE, GATED = "inverted_residual (CUDA)", "gated_project (CUDA)"
"""The kernels that compute several layers: a block as a whole, or with squeeze-excite its first and its last layers."""


@dataclass(frozen=True)
class Row:
    """A launch and the layers that it computes, as "b4.gate, project"."""

    layers: str
    launch: AnyLaunch

    def choice(self) -> tuple[str, str]:
        """Equal for launches that do the same in the same way."""
        return self.layers, f"{label(self.launch)} {self.launch.grid}"


def rows(layers: Sequence[Layer], launches: Sequence[AnyLaunch]) -> list[Row]:
    """The launches of a pass with their layers.

    Raises:
        ValueError: if launches and layers do not come out even.
    """
    found: list[Row] = []
    rest = list(layers)
    for launch in launches:
        count, name = 1, name_of(launch)
        if name in (WHOLE, GATED):
            block = [layer.kind for layer in rest if layer.name.split(".")[0] == rest[0].name.split(".")[0]]
            count = len(block) if name == GATED or "gate" not in block else block.index("gate")
        if count > len(rest):
            raise ValueError(f"rows: a launch of {name} has no layer left of {len(layers)}")
        first, *others = (layer.name for layer in rest[:count])
        found.append(Row(", ".join([first, *(other.split(".")[1] for other in others)]), launch))
        del rest[:count]
    if rest:
        raise ValueError(f"rows: {len(rest)} of {len(layers)} layers have no launch, {rest[0].name} first")
    return found


def table(net: str, batch: int) -> str:
    """One pass, in Markdown."""
    layers = layers_of(stages_of(net), (batch, 3, 224, 224))
    by_gpu = {gpu: rows(layers, passes(net, batch, gpu)) for gpu in GPUS}
    lines = [
        "| layers | kernel | blocks x threads | kB | requested kB | 10^3 instructions | "
        + " | ".join(f"{gpu.name}, us" for gpu in GPUS) + " |",
        "|---|---|" + "---:|" * (4 + len(GPUS)),
    ]  # fmt: skip
    for chosen in _in_order(list(by_gpu.values())):
        times_, row = [], None
        for gpu, mine in by_gpu.items():
            found = next((one for one in mine if one.choice() == chosen), None)
            times_.append("-" if found is None else _time(found.launch, gpu))
            row = row or found
        lines.append(f"| {row.layers} | {' | '.join([*_cells(row.launch), *times_])} |")
    for words, cuda in (("all, us", True), ("Triton alone, us", False)):
        cells = [f"{ours(gpu, net, batch, cuda).seconds * 1e6:,.1f}" for gpu in GPUS]
        lines.append(f"| {words} | | | | | | {' | '.join(cells)} |")
    for words, gpus in (("launches", GPUS), ("launches, Triton alone", [None] * len(GPUS))):
        lines.append(f"| {words} | | | | | | {' | '.join(str(len(passes(net, batch, gpu))) for gpu in gpus)} |")
    return "\n".join(lines)


def _in_order(found: Sequence[Sequence[Row]]) -> list[tuple[str, str]]:
    """The choices of all GPUs, layers in the order of the network, those of one layer side by side."""
    starts: dict[str, int] = {}
    choices: dict[tuple[str, str], int] = {}
    for mine in found:
        for row in mine:
            first = row.layers.split(",")[0]
            starts.setdefault(first, len(starts))
            choices.setdefault(row.choice(), starts[first])
    return sorted(choices, key=lambda choice: choices[choice])


def _time(launch: AnyLaunch, gpu: GPU) -> str:
    found = times(launch, gpu.properties)
    bound = max(found, key=lambda name: found[name])
    return f"{found[bound] * 1e6:.1f} {bound}"


def _cells(launch: AnyLaunch) -> list[str]:
    moved, blocks, threads = traffic(launch), launch.grid[0] * launch.grid[1] * launch.grid[2], launch.threads
    issued = blocks * -(-threads // 32) * executed(launch, COUNTED)[0]
    return [
        name_of(launch), f"{blocks:,} x {threads}", f"{moved.unique_bytes / 1e3:,.1f}",
        f"{moved.requested_bytes / 1e3:,.1f}", f"{issued / 1e3:,.1f}",
    ]  # fmt: skip


def blocks_table(batches: Sequence[int]) -> str:
    """Blocks that have CUDA kernels: their time by these and by a launch a layer on each GPU, in Markdown."""
    lines = [f"| block | batch | {' | '.join(gpu.name for gpu in GPUS)} |", "|---|---:|" + "---:|" * len(GPUS)]
    for net, batch in product(NETS, batches):
        for name, question in questions(net, batch):
            cells = []
            for gpu in GPUS:
                seconds = {variant: cost(question, gpu.properties, variant)[0] for variant in choice.VARIANTS}
                words = " / ".join(f"{seconds[variant] * 1e6:.1f}" for variant in ("cuda", "triton"))
                cells.append(f"**{words}**" if choice.VARIANTS[1] == better(question, gpu.properties) else words)
            lines.append(f"| {net} {name} | {batch} | {' | '.join(cells)} |")
    return "\n".join(lines)


def questions(net: str, batch: int) -> list[tuple[str, Question]]:
    """The choices between a launch a layer and CUDA kernels for whole blocks, by the block's name."""
    network = Network(stages_of(net), DTYPE)
    shape, found, blocks = (batch, 3, 224, 224), [], 0
    for (_, step), after in zip(network.steps, network.shapes(shape), strict=True):
        if isinstance(step, Block):
            question = choice.block_questions(step, shape, DTYPE)[0]
            if choice.is_known(question):
                found.append((f"b{blocks}", question))
            blocks += 1
        shape = after
    return found


def depthwise_table() -> str:
    """Instructions an output of both kernels, in Markdown."""
    by_case: dict[tuple, dict[str, AnyLaunch]] = {}
    for launch in depthwise_launches():
        of = launch.constants
        case = (dtype_of(launch), of.get("KERNEL", of.get("KERNEL_H")), of.get("STRIDE", of.get("STEP_W")))
        if of["SUMS"] and of["ACTIVATION"] == HARDSWISH:
            by_case.setdefault(case, {})["cuda" if isinstance(launch, CudaLaunch) else "triton"] = launch
    lines = [f"| dtype | kernel, stride | {' | '.join(f'sm_{each}' for each in ARCHITECTURES)} |"]
    lines.append("|---|---|" + "---:|" * len(ARCHITECTURES))
    for (dtype, size, stride), pair in by_case.items():
        cells = []
        for architecture in ARCHITECTURES:
            each = [executed(pair[name], architecture)[0] / outputs_of(pair[name]) for name in ("cuda", "triton")]
            cells.append(" / ".join(f"{count:.1f}" for count in each))
        lines.append(f"| {str(dtype).removeprefix('torch.')} | {size}x{size}, {stride} | {' | '.join(cells)} |")
    return "\n".join(lines)


HARDSWISH = 2


def outputs_of(launch: AnyLaunch) -> int:
    """Channels of pixels that a thread of a depthwise kernel computes."""
    vector = launch.constants.get("VECTOR", 16 // dtype_of(launch).itemsize)
    return launch.constants["TILE_H"] * launch.constants["TILE_W"] * vector


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.layers", description=__doc__.splitlines()[0])
    parser.add_argument("--net", action="append", choices=NETS, help="may be repeated; default: both")
    parser.add_argument("--batch", type=int, action="append", choices=BATCHES, help="may be repeated; default: 1 128")
    parser.add_argument("--blocks", action="store_true", help="times of blocks by both variants instead")
    parser.add_argument("--depthwise", action="store_true", help="instructions an output of depthwise kernels instead")
    options = parser.parse_args(arguments)
    if options.depthwise:
        sys.stdout.write(depthwise_table() + "\n")
        return
    if options.blocks:
        sys.stdout.write(blocks_table(options.batch or [1, 8, 32]) + "\n")
        return
    for net, batch in product(options.net or NETS, options.batch or [1, 128]):
        sys.stdout.write(f"**{net}, batch {batch}, fp16, computed**\n\n{table(net, batch)}\n\n")


if __name__ == "__main__":
    main()
