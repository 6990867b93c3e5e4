"""``python -m benchmarks.gpu.model``: images a second to expect of GPUs that are not here, computed.

A kernel takes the longest of five times (mnv3_fast/gpu/counts.py, which the library chooses kernels by): its bytes at
the memory's bandwidth, what its blocks bring from L2, its instructions at the issue rate, its matrix products at the
tensor cores' rate, and what a launch takes at least. A pass is the sum of its kernels. Ours are our launches, by Triton
alone and with the CUDA kernels that are chosen by these times, with the instructions that their compiled code has;
compiled torch is level b and eager torch level a of benchmarks.gpu.roofline, of which the bytes and launches alone are
known.

Approximated: memory runs at its full rate; the map that the kernel before wrote comes from L2 where half of it holds
it; blocks are spread evenly over the multiprocessors, which issue whenever they have a warp; nothing waits for anything
else (latency, barriers, the last blocks of a launch).
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product

from benchmarks.gpu import published
from benchmarks.gpu.gpus import EAGER_LAUNCH, GPU, GPUS
from benchmarks.gpu.instructions import BATCHES, DTYPE, NETS
from mnv3_fast.gpu import choice
from mnv3_fast.gpu.counts import LAUNCH, times
from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.gpu.network import Network
from mnv3_fast.testing.gpu_bench.levels import Kernel, kernels, layers_of, stages_of
from mnv3_fast.testing.gpu_bench.requested import launches_of

BOUNDS = ("memory", "L2", "issue", "tensor", "launch")


@dataclass(frozen=True)
class Pass:
    """A pass over a batch: seconds, and the part of them in kernels that each bound is the longest for."""

    batch: int
    seconds: float
    parts: dict[str, float]

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.batch / self.seconds

    @property
    def bound(self) -> str:
        """What binds the most of it."""
        return max(self.parts, key=lambda name: self.parts[name])


def add_up(batch: int, times: Iterable[dict[str, float]]) -> Pass:
    """A pass of kernels, each with its times."""
    parts = dict.fromkeys(BOUNDS, 0.0)
    for each in times:
        longest = max(each, key=lambda name: each[name])
        parts[longest] += each[longest]
    seconds = sum(parts.values())
    return Pass(batch, seconds, {name: part / seconds for name, part in parts.items()})


def memory_seconds(gpu: GPU, kernel: Kernel) -> float:
    """Of a kernel of torch's; the map before it costs nothing where half of L2 holds it."""
    chained = 0 if kernel.chained <= gpu.cache // 2 else kernel.chained
    return (chained + kernel.others + kernel.written) / gpu.bandwidth


@functools.cache
def passes(net: str, batch: int, gpu: GPU | None = None) -> list[AnyLaunch]:
    """The launches of a pass: Triton's alone, or with the CUDA kernels that are chosen for a GPU."""
    with nullcontext() if gpu is None else choice.assume(gpu.properties):
        return launches_of(Network(stages_of(net), DTYPE), (batch, 3, 224, 224))


def ours(gpu: GPU, net: str, batch: int, cuda: bool) -> Pass:
    """A frozen network, in a CUDA graph, without or with the library of CUDA kernels."""
    return add_up(batch, (times(launch, gpu.properties) for launch in passes(net, batch, gpu if cuda else None)))


def torch_at(level: str, gpu: GPU, net: str, batch: int) -> Pass:
    """Eager torch (level a) or compiled torch in a CUDA graph (any other level), in 16 bit."""
    least = EAGER_LAUNCH if level == "a" else LAUNCH
    layers = layers_of(_stages(net), (batch, 3, 224, 224))
    return add_up(
        batch,
        (
            {"memory": memory_seconds(gpu, kernel), "launch": least}
            for layer in layers
            for kernel in kernels(layer, level, DTYPE.itemsize)
        ),
    )


@functools.cache
def _stages(net: str) -> list:
    return stages_of(net)


def table(net: str, batches: Sequence[int]) -> str:
    """Every GPU at some batches, in Markdown."""
    lines = [
        "| GPU | batch | launches | us a pass | bound by | img/s | Triton alone: launches | us | img/s | level c "
        "| compiled (b) | eager (a) | ours / compiled | ours / Triton alone |",
        "|---|" + "---:|" * 3 + "---|" + "---:|" * 9,
    ]
    for gpu, batch in product(GPUS, batches):
        mine, triton = ours(gpu, net, batch, True), ours(gpu, net, batch, False)
        c, b, a = (torch_at(level, gpu, net, batch).rate for level in "cba")
        parts = ", ".join(f"{name} {part:.0%}" for name, part in mine.parts.items() if part >= 0.005)
        lines.append(
            f"| {gpu.name} | {batch} | {len(passes(net, batch, gpu))} | {mine.seconds * 1e6:,.0f} | {parts} "
            f"| {mine.rate:,.0f} | {len(passes(net, batch))} | {triton.seconds * 1e6:,.0f} | {triton.rate:,.0f} "
            f"| {c:,.0f} | {b:,.0f} | {a:,.0f} | {mine.rate / b:.2f} | {mine.rate / triton.rate:.2f} |"
        )
    return "\n".join(lines)


def kernel_table(batches: Sequence[int]) -> str:
    """Where our time goes, in Markdown: us of all launches of each kernel, and what binds the most of them."""
    found = {
        (gpu, net, batch): {name_of(launch) for launch in passes(net, batch, gpu)}
        for gpu, net, batch in product(GPUS, NETS, batches)
    }
    names = sorted(set().union(*found.values()))
    lines = [
        f"| GPU | net | batch | {' | '.join(f'{name}, us' for name in names)} |",
        "|---|---|---:|" + "---:|" * len(names),
    ]
    for (gpu, net, batch), used in found.items():
        cells = []
        for name in names:
            mine = [times(launch, gpu.properties) for launch in passes(net, batch, gpu) if name_of(launch) == name]
            sum_ = add_up(batch, mine) if name in used else None
            cells.append(f"{sum_.seconds * 1e6:,.0f} ({sum_.bound})" if sum_ else "-")
        lines.append(f"| {gpu.name} | {net} | {batch} | {' | '.join(cells)} |")
    return "\n".join(lines)


def name_of(launch: AnyLaunch) -> str:
    """Of its kernel, CUDA's with that word."""
    return launch.kernel.__name__.removesuffix("_kernel").replace("_cuda", " (CUDA)")


def comparison() -> str:
    """timm's published rows beside the model, in Markdown."""
    lines = [
        "| timm's file (benchmark-infer-amp-...) | GPU | batch | level | large, published | model | model / published "
        "| small, published | model | model / published |",
        "|---|---|---:|---|" + "---:|" * 6,
    ]
    by_name = {gpu.name: gpu for gpu in GPUS}
    for row in published.ROWS:
        cells = []
        for net in NETS:
            rate, said = torch_at(row.level, by_name[row.gpu], net, row.batch).rate, getattr(row, net)
            cells += [f"{said:,}", f"{rate:,.0f}", f"{rate / said:.2f}"]
        lines.append(f"| {row.file} | {row.gpu} | {row.batch} | {row.level} | {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(batches: Sequence[int]) -> str:
    """Everything, as it stands in docs/gpu.md."""
    out = []
    for net in NETS:
        out += [f"**{net}, fp16, computed**", "", table(net, batches), ""]
    out += ["**The same by kernel, computed**", "", kernel_table(batches), ""]
    return "\n".join([*out, "**The same model beside what timm published, computed**", "", comparison()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.model", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, action="append", choices=BATCHES, help="may be repeated; default: 1 128")
    options = parser.parse_args(arguments)
    sys.stdout.write(markdown(options.batch or [1, 128]) + "\n")


if __name__ == "__main__":
    main()
