"""What a pass of a network has to move, from shapes alone: four levels of fusion, kernel by kernel.

a: every op is a kernel of its own (convolution, BatchNorm, activation, pool, scale, addition).
b: convolution, BatchNorm and activation are one kernel; the pool, the scale and the residual are kernels of their own.
c: the pool joins the depthwise convolution, the scale the projection's input, the residual its output.
d: a block is one kernel; only its input and its output move.

At each level weights are read once a pass, and a map once by each kernel that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torchvision

from mnv3_fast.engine.kinds import BLOCK, LINEAR, POOL, STEM
from mnv3_fast.models.description import describe_net
from mnv3_fast.ops.elements import convolved_size
from mnv3_fast.ops.inverted_residual.layout import HAS_BATCH_NORM, unflatten
from mnv3_fast.ops.network.layout import Stage

LEVELS = ("a", "b", "c", "d")
FP32 = 4
"""Bytes of biases, BatchNorm's vectors, means and gates."""


@dataclass(frozen=True)
class Layer:
    """One layer over a whole batch. Maps and weights in elements.

    Attributes:
        kind: stem, expand, depthwise, gate, project, pointwise, pool or linear.
        input, output: of its maps; a gate's are its means and gates.
        weight: of its weights, both layers' of a gate.
        vectors: of biases, which are fp32.
        hidden: squeezed channels times the batch, of a gate.
        map: what a gate scales, of a gate.
        block_input: the input of the block that a projection ends.
        block_weight: the weights of all its layers.
        sums: channels times the batch whose sums a depthwise convolution gives to a gate.
    """

    name: str
    kind: str
    input: int
    output: int
    weight: int
    vectors: int
    macs: int
    normed: bool = False
    activated: bool = False
    residual: bool = False
    gated: bool = False
    hidden: int = 0
    map: int = 0
    block_input: int = 0
    block_weight: int = 0
    sums: int = 0


@dataclass(frozen=True)
class Kernel:
    """One kernel's unique bytes: of the map that the kernel before wrote, what else it reads, what it writes."""

    what: str
    chained: int
    others: int
    written: int

    @property
    def bytes(self) -> int:
        """All of them."""
        return self.chained + self.others + self.written


def stages_of(net: str) -> list[Stage]:
    """The stages of torchvision's "large" or "small", their tensors without memory."""
    with torch.device("meta"):
        model = getattr(torchvision.models, f"mobilenet_v3_{net}")().eval()
    return describe_net(model).stages()


def layers_of(stages: Sequence[Stage], shape: Sequence[int]) -> list[Layer]:
    """The layers of a network over images [N, C, H, W], in the order in which our kernels run them."""
    found: list[Layer] = []
    n, channels, height, width = shape
    blocks = linears = 0
    for stage in stages:
        pixels = height * width
        if stage.kind == BLOCK:
            found += _block(f"b{blocks}", stage, n, channels, height, width)
            blocks += 1
            kernel = stage.tensors[_depthwise_index(stage)].shape[2:]
            size = convolved_size((height, width), kernel, stage.spec[5:13])
            channels = _project_channels(stage)
            height, width = size
        elif stage.kind == POOL:
            found.append(Layer("pool", "pool", n * channels * pixels, n * channels, 0, 0, 0))
            height = width = 1
        else:
            weight, activated = stage.tensors[0], stage.spec[1] != 0
            outputs, kind = weight.shape[0], {STEM: "stem", LINEAR: "linear"}.get(stage.kind, "pointwise")
            name = {"pointwise": "tail", "linear": f"linear{linears}"}.get(kind, kind)
            linears += kind == "linear"
            input = n * channels * pixels
            if kind == "stem":
                height, width = convolved_size((height, width), weight.shape[2:], stage.window())
            output = n * outputs * height * width
            macs = output * weight[0].numel()
            normed = bool(stage.spec[0] & HAS_BATCH_NORM)
            found.append(Layer(name, kind, input, output, weight.numel(), outputs, macs, normed, activated))
            channels = outputs
    return found


def _block(name: str, stage: Stage, n: int, channels: int, height: int, width: int) -> Iterator[Layer]:
    block, spec = unflatten(stage.tensors, stage.spec, stage.constants), stage.spec
    hidden, taps = block.depthwise.weight.shape[0], block.depthwise.weight[0].numel()
    outputs, squeeze = block.project.weight.shape[0], block.squeeze_excite
    before, expanded = n * channels * height * width, n * hidden * height * width
    weights = hidden * taps + outputs * hidden
    if block.expand:
        weights += hidden * channels
        yield Layer(
            f"{name}.expand", "expand", before, expanded, hidden * channels, hidden, expanded * channels,
            bool(spec[1] & HAS_BATCH_NORM), spec[2] != 0,
        )  # fmt: skip
    size = convolved_size((height, width), block.depthwise.weight.shape[2:], spec[5:13])
    between, after = n * hidden * size[0] * size[1], n * outputs * size[0] * size[1]
    yield Layer(
        f"{name}.depthwise", "depthwise", expanded, between, hidden * taps, hidden, between * taps,
        bool(spec[3] & HAS_BATCH_NORM), spec[4] != 0, sums=n * hidden if squeeze else 0,
    )  # fmt: skip
    if squeeze:
        inner = squeeze[0].shape[0]
        weights += 2 * hidden * inner
        yield Layer(
            f"{name}.gate", "gate", n * hidden, n * hidden, 2 * hidden * inner, hidden + inner,
            2 * n * hidden * inner, hidden=n * inner, map=between,
        )  # fmt: skip
    yield Layer(
        f"{name}.project", "project", between, after, outputs * hidden, outputs, after * hidden,
        bool(spec[16] & HAS_BATCH_NORM), spec[17] != 0, bool(spec[18]), squeeze is not None,
        block_input=before, block_weight=weights, map=n * hidden if squeeze else 0,
    )  # fmt: skip


def kernels(layer: Layer, level: str, size: int) -> list[Kernel]:
    """A layer's kernels at a level; none where another layer's kernel does its work.

    Args:
        level: a, b, c or d.
        size: bytes of an element of maps and weights.
    """
    if level not in LEVELS:
        raise ValueError(f"kernels: level must be one of {', '.join(LEVELS)}, got {level!r}")
    if layer.kind == "gate":
        return _gate(layer, level, size)
    input, output = layer.input * size, layer.output * size
    weights, vectors = layer.weight * size, layer.vectors * FP32
    if layer.kind == "pool":
        return [Kernel("pool", input, 0, output)]
    if level == "d" and layer.kind in ("expand", "depthwise"):
        return []
    if level == "d" and layer.kind == "project":
        return [Kernel("block", layer.block_input * size, layer.block_weight * size, output)]
    if level == "a":
        found = [Kernel("convolution", input, weights, output)]
        if layer.normed:
            found.append(Kernel("norm", output, 4 * vectors, output))
        if layer.activated:
            found.append(Kernel("activation", output, 0, output))
    else:
        sums = layer.sums * FP32 if level == "c" else 0
        gates = layer.map * FP32 if level == "c" else 0
        residual = output if level == "c" and layer.residual else 0
        found = [Kernel("convolution", input, weights + vectors + gates + residual, output + sums)]
    if layer.residual and level in "ab":
        found.append(Kernel("addition", output, output, output))
    return found


def _gate(layer: Layer, level: str, size: int) -> list[Kernel]:
    """Squeeze-excite without its pool, where the depthwise convolution does that, and its scale likewise."""
    if level == "d":
        return []
    means, weights = layer.input * size, layer.weight * size + layer.vectors * FP32
    if level == "c":
        return [Kernel("gate", layer.input * FP32, weights, layer.output * FP32)]
    hidden, map = layer.hidden * size, layer.map * size
    first = [Kernel("pool", map, 0, means), Kernel("convolution", means, weights // 2, hidden)]
    second = Kernel("convolution", hidden, weights - weights // 2, means)
    scale = Kernel("scale", means, map, map)
    if level == "b":
        return [*first, second, scale]
    return [*first, Kernel("activation", hidden, 0, hidden), second, Kernel("gate", means, 0, means), scale]


def _depthwise_index(stage: Stage) -> int:
    """Where the depthwise weight lies among a block's tensors."""
    block = unflatten(stage.tensors, stage.spec, stage.constants)
    return next(i for i, tensor in enumerate(stage.tensors) if tensor is block.depthwise.weight)


def _project_channels(stage: Stage) -> int:
    return unflatten(stage.tensors, stage.spec, stage.constants).project.weight.shape[0]
