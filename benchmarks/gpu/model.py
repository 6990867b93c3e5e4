"""``python -m benchmarks.gpu.model``: images a second to expect of GPUs that are not here, computed.

A kernel takes the longest of four times: its bytes at the memory's bandwidth, its instructions at the issue rate, its
matrix products at the tensor cores' rate, and what a launch takes at least. A pass is the sum of its kernels. Ours are
our launches, with the instructions that their compiled code has; compiled torch is level b and eager torch level a of
benchmarks.gpu.roofline, of which the bytes and launches alone are known.

Approximated: memory runs at its full rate; the map that the kernel before wrote is read from L2 for free where half of
L2 holds it; programs are spread evenly over the multiprocessors, which issue whenever they have a warp; nothing waits
for anything else (latency, barriers, the last programs of a launch).
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.gpu import instructions, published
from benchmarks.gpu.gpus import EAGER_LAUNCH, GPU, GPUS, GRAPH_LAUNCH, SCHEDULERS
from benchmarks.gpu.instructions import BATCHES, DTYPE, NETS
from benchmarks.gpu.sass import label, rounds, tensor_operations
from mnv3_fast.gpu.launch import Launch
from mnv3_fast.gpu.network import Network
from mnv3_fast.testing.gpu_bench.levels import Kernel, kernels, layers_of, stages_of
from mnv3_fast.testing.gpu_bench.requested import launches_of, traffic

BOUNDS = ("memory", "issue", "tensor", "launch")


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
    """A pass of kernels, each with its four times."""
    parts = dict.fromkeys(BOUNDS, 0.0)
    for each in times:
        longest = max(each, key=lambda name: each[name])
        parts[longest] += each[longest]
    seconds = sum(parts.values())
    return Pass(batch, seconds, {name: part / seconds for name, part in parts.items()})


def memory_seconds(gpu: GPU, kernel: Kernel) -> float:
    """Of a kernel's bytes; the map before it costs nothing where half of L2 holds it."""
    chained = 0 if kernel.chained <= gpu.cache // 2 else kernel.chained
    return (chained + kernel.others + kernel.written) / gpu.bandwidth


def issue_seconds(gpu: GPU, launch: Launch, executed: tuple[int, int]) -> float:
    """Of a launch's instructions on the multiprocessor that gets most programs."""
    warps = launch.warps * -(-launch.grid[0] * launch.grid[1] * launch.grid[2] // gpu.multiprocessors)
    total, fp32 = executed
    cycles = max(total / SCHEDULERS, fp32 * 32 / gpu.lanes)
    return warps * cycles / gpu.clock


@functools.cache
def _launches(net: str, batch: int) -> list[Launch]:
    return launches_of(Network(stages_of(net), DTYPE), (batch, 3, 224, 224))


@functools.cache
def _counts() -> dict:
    return instructions.load()


def ours(gpu: GPU, net: str, batch: int) -> Pass:
    """A frozen network, in a CUDA graph."""
    return add_up(batch, (times for _, times in launch_times(gpu, net, batch)))


def launch_times(gpu: GPU, net: str, batch: int) -> list[tuple[str, dict[str, float]]]:
    """The kernel and the four times of each of our launches."""
    found = []
    for launch in _launches(net, batch):
        moved = traffic(launch)
        chained = moved.unique.get("input", moved.unique.get("sums", 0))
        kernel = Kernel("", chained, sum(moved.unique.values()) - chained, sum(moved.written.values()))
        executed = _counts()[gpu.architecture][label(launch)].executed(rounds(launch))
        times = {
            "memory": memory_seconds(gpu, kernel),
            "issue": issue_seconds(gpu, launch, executed),
            "tensor": tensor_operations(launch) / gpu.tensor,
            "launch": GRAPH_LAUNCH,
        }
        found.append((launch.kernel.__name__.removesuffix("_kernel"), times))
    return found


def torch_at(level: str, gpu: GPU, net: str, batch: int) -> Pass:
    """Eager torch (level a) or compiled torch in a CUDA graph (any other level), in 16 bit."""
    least = EAGER_LAUNCH if level == "a" else GRAPH_LAUNCH
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
        "| GPU | batch | ours, img/s | us a pass | bound by | level c | compiled (b) | eager (a) | ours / compiled "
        "| ours / eager |",
        "|---|" + "---:|" * 3 + "---|" + "---:|" * 5,
    ]
    for gpu in GPUS:
        for batch in batches:
            mine = ours(gpu, net, batch)
            c, b, a = (torch_at(level, gpu, net, batch).rate for level in "cba")
            parts = ", ".join(f"{name} {part:.0%}" for name, part in mine.parts.items() if part >= 0.005)
            lines.append(
                f"| {gpu.name} | {batch} | {mine.rate:,.0f} | {mine.seconds * 1e6:,.0f} | {parts} | {c:,.0f} "
                f"| {b:,.0f} | {a:,.0f} | {mine.rate / b:.2f} | {mine.rate / a:.2f} |"
            )
    return "\n".join(lines)


def kernel_table(batches: Sequence[int]) -> str:
    """Where our time goes, in Markdown: us of all launches of each kernel, and what binds the most of them."""
    names = ("stem_conv", "pointwise_conv", "depthwise_conv", "squeeze_excite_gate", "channel_sums")
    lines = [f"| GPU | net | batch | {' | '.join(f'{name}, us' for name in names)} |", "|---|---|---:|" + "---:|" * 5]
    for gpu in GPUS:
        for net, batch in product(NETS, batches):
            cells = []
            for name in names:
                mine = add_up(batch, (times for kernel, times in launch_times(gpu, net, batch) if kernel == name))
                cells.append(f"{mine.seconds * 1e6:,.0f} ({mine.bound})")
            lines.append(f"| {gpu.name} | {net} | {batch} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
