"""What the layers of a plan do, and how long each takes: timed inside the executor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnv3_fast import _library
from mnv3_fast.engine.kinds import BLOCK, LINEAR, POINTWISE, POOL, STEM
from mnv3_fast.engine.plan import Node, read_plan
from mnv3_fast.ops.elements import convolved_size

_NAMES = {STEM: "stem", BLOCK: "inverted residual", POINTWISE: "1x1 convolution", POOL: "pool", LINEAR: "linear"}
Size = tuple[int, int, int]
"""Images, height, width."""


@dataclass(frozen=True)
class LayerWork:
    """One layer of a plan; multiply-adds and bytes for an input, None without one.

    ``weight_bytes`` are read once a call (stem, classifier) or once an image; ``bytes`` adds the maps it reads and
    writes, each value once.
    """

    kind: str
    macs: int | None
    weight_bytes: int
    bytes: int | None


@dataclass(frozen=True)
class LayerTimes:
    """Seconds of a call, and of each layer of it, from the same calls."""

    call: float
    layers: tuple[float, ...]


def layers_of(plan: Tensor, shape: Sequence[int] | None) -> list[LayerWork]:
    """The layers of a plan in order, for an input of this shape if one is given."""
    size = None if shape is None else (shape[0], shape[2], shape[3])
    layers = []
    for node in read_plan(plan):
        words = node.words
        channels = "" if node.kind == POOL else f" {words[1]}->{words[3 if node.kind == BLOCK else 2]}"
        weights = 4 * _weights(node)
        if size is None:
            layers.append(LayerWork(_NAMES[node.kind] + channels, None, weights, None))
            continue
        out = _output_size(node, size)
        inputs = words[1] * _pixels(size)
        outputs = words[1 if node.kind == POOL else 3 if node.kind == BLOCK else 2] * _pixels(out)
        moved = weights + 4 * (inputs + outputs)
        layers.append(LayerWork(_NAMES[node.kind] + channels, _macs(node, size, out), weights, moved))
        size = out
    return layers


@torch.no_grad()
def time_layers(run: Callable[[Tensor], Any], x: Tensor, calls: int = 40) -> LayerTimes:
    """Times of a call of ``run``, which runs one plan: means over the quicker half of the calls."""
    extension = _library.extension()
    extension.time_layers(True)
    try:
        for _ in range(5):
            run(x)
        found = []
        for _ in range(calls):
            start = time.perf_counter()
            run(x)
            found.append((time.perf_counter() - start, extension.layer_times()))
    finally:
        extension.time_layers(False)
    found = sorted(found)[: max(1, calls // 2)]
    layers = zip(*(layers for _, layers in found), strict=True)
    return LayerTimes(statistics.fmean(call for call, _ in found), tuple(statistics.fmean(times) for times in layers))


def memory_bandwidth() -> float:
    """Bytes a second that torch's threads read from memory now: the best of three sums over 128 MiB."""
    data = torch.ones(2**25)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        data.sum()
        best = min(best, time.perf_counter() - start)
    return data.numel() * 4 / best


def bound_of(layer: LayerWork, seconds: float, peak: float, bandwidth: float) -> str:
    """What bounds a layer, of multiply-adds at ``peak`` a second and its weights read at ``bandwidth``."""
    assert layer.macs is not None
    computing, reading = layer.macs / peak, layer.weight_bytes / bandwidth
    if max(computing, reading) < seconds / 2:
        return "neither"
    return "multiply-adds" if computing >= reading else "reading weights"


def _pixels(size: Size) -> int:
    return size[0] * size[1] * size[2]


def _weights(node: Node) -> int:
    words = node.words
    if node.kind == POOL:
        return 0
    if node.kind in (POINTWISE, LINEAR):
        return words[2] * (words[1] + 1)
    if node.kind == STEM:
        return words[2] * (words[1] * words[3] * words[4] + 1)
    inputs, hidden, outputs, squeeze = words[1], words[2], words[3], words[17]
    expand = hidden * (inputs + 1) if words[14] else 0
    gate = 2 * hidden * squeeze + hidden + squeeze if squeeze else 0
    return expand + hidden * (words[4] * words[5] + 1) + gate + outputs * (hidden + 1)


def _output_size(node: Node, size: Size) -> Size:
    images, height, width = size
    if node.kind in (POINTWISE, LINEAR):
        return size
    if node.kind == POOL:
        return images, 1, 1
    first = 3 if node.kind == STEM else 4
    window = [node.words[first + i] for i in range(10)]
    return images, *convolved_size((height, width), window[:2], window[2:])


def _macs(node: Node, size: Size, out: Size) -> int:
    words = node.words
    if node.kind == POOL:
        return 0
    if node.kind in (POINTWISE, LINEAR):
        return _pixels(size) * words[1] * words[2]
    if node.kind == STEM:
        return _pixels(out) * words[1] * words[2] * words[3] * words[4]
    macs = _pixels(out) * words[2] * (words[4] * words[5] + words[3]) + 2 * size[0] * words[2] * words[17]
    return macs + (_pixels(size) * words[1] * words[2] if words[14] else 0)


def share_of_calls(rows: Iterable[tuple[str, float | None, float | None]]) -> float | None:
    """Percent of the time of all engines' calls that their layers take; None without times.

    Args:
        rows: path, milliseconds and percent of its engine's call, of each layer.
    """
    layers = calls = 0.0
    engines: set[str] = set()
    for path, milliseconds, percent in rows:
        if milliseconds is None or not percent:
            continue
        layers += milliseconds
        engine = path.rpartition(".")[0]
        if engine not in engines:  # all rows of an engine tell the same of its call
            engines.add(engine)
            calls += 100 * milliseconds / percent
    return 100 * layers / calls if calls else None
