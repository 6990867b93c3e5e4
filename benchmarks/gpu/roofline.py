"""``python -m benchmarks.gpu.roofline``: what a pass moves, layer by layer, computed from shapes and launches.

Levels a to d are defined in mnv3_fast/testing/gpu_bench/levels.py. "Ours" are the bytes of our launches: different
ones, sums by tile and work space included, and all that threads ask for, most of which the caches answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mnv3_fast.gpu.network import Network
from mnv3_fast.gpu.traffic import traffic
from mnv3_fast.testing.gpu_bench.levels import LEVELS, Layer, kernels, layers_of, stages_of
from mnv3_fast.testing.gpu_bench.requested import launches_of

NETS = ("large", "small")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Line:
    """A layer, or all: launches, multiply-adds, bytes of each level and of our launches. All of one pass."""

    name: str
    launches: int
    macs: int
    levels: dict[str, int]
    unique: int
    requested: int

    def cells(self, batch: int) -> list[str]:
        """Multiply-adds and bytes an image, in 10^6 and kB."""
        bytes_ = [*self.levels.values(), self.unique, self.requested]
        return [
            self.name, str(self.launches), f"{self.macs / batch / 1e6:.2f}",
            *(f"{b / batch / 1e3:,.1f}" for b in bytes_), f"{self.requested / self.unique:.2f}",
        ]  # fmt: skip


def lines(net: str, batch: int, dtype: torch.dtype, size: int = 224) -> list[Line]:
    """Every layer of torchvision's "large" or "small", and the whole as the last line.

    Raises:
        ValueError: if the launches are not one a layer, in order.
    """
    stages, shape = stages_of(net), (batch, 3, size, size)
    layers, launches = layers_of(stages, shape), launches_of(Network(stages, dtype), shape)
    if len(layers) != len(launches):
        raise ValueError(f"roofline: {net} has {len(layers)} layers and {len(launches)} launches")
    found = []
    for layer, launch in zip(layers, launches, strict=True):
        moved = traffic(launch)
        found.append(Line(layer.name, 1, layer.macs, _levels(layer, dtype), moved.unique_bytes, moved.requested_bytes))
    return [*found, total(net, found)]


def _levels(layer: Layer, dtype: torch.dtype) -> dict[str, int]:
    return {level: sum(kernel.bytes for kernel in kernels(layer, level, dtype.itemsize)) for level in LEVELS}


def total(name: str, found: Sequence[Line]) -> Line:
    """The sum of some lines."""
    levels = {level: sum(line.levels[level] for line in found) for level in LEVELS}
    sums = (sum(getattr(line, what) for line in found) for what in ("launches", "macs", "unique", "requested"))
    launches, macs, unique, requested = sums
    return Line(name, launches, macs, levels, unique, requested)


HEAD = (
    "| layer | launches | 10^6 multiply-adds | a, kB | b | c | d | ours, unique | requested | requested / unique |\n"
    "|---|" + "---:|" * 9
)


def table(net: str, batch: int, dtype: torch.dtype, layers: bool = True) -> str:
    """Per image, in Markdown."""
    shown = lines(net, batch, dtype)
    return "\n".join([HEAD, *(f"| {' | '.join(line.cells(batch))} |" for line in (shown if layers else shown[-1:]))])


def summary(batch: int) -> str:
    """Both networks as a whole in 16 bit and fp32, with the launches of each level."""
    out = [
        f"| batch {batch}, MB an image | a | b | c | d | ours, unique | ours / c | requested | requested / unique |",
        "|---|" + "---:|" * 8,
    ]
    for net in NETS:
        layers = layers_of(stages_of(net), (batch, 3, 224, 224))
        for name, dtype in (("16 bit", torch.float16), ("fp32", torch.float32)):
            all_ = lines(net, batch, dtype)[-1]
            bytes_ = [*all_.levels.values(), all_.unique]
            cells = [f"{b / batch / 1e6:.2f}" for b in bytes_] + [f"{all_.unique / all_.levels['c']:.3f}"]
            cells += [f"{all_.requested / batch / 1e6:.2f}", f"{all_.requested / all_.unique:.2f}"]
            out.append(f"| {net}, {name} | {' | '.join(cells)} |")
        counts = [str(sum(len(kernels(layer, level, 2)) for layer in layers)) for level in LEVELS]
        out.append(f"| {net}, launches | {' | '.join(counts)} | {all_.launches} | | | |")
    return "\n".join(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=NETS, action="append", help="default: both")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp16")
    parser.add_argument("--summary", action="store_true", help="both networks as a whole")
    options = parser.parse_args(arguments)
    if options.batch < 1:
        parser.error(f"--batch must be at least 1, got {options.batch}")
    if options.summary:
        sys.stdout.write(summary(options.batch) + "\n")
        return
    for net in options.net or NETS:
        sys.stdout.write(f"**{net}, batch {options.batch}, {options.dtype}, an image**\n\n")
        sys.stdout.write(table(net, options.batch, DTYPES[options.dtype]) + "\n\n")


if __name__ == "__main__":
    main()
