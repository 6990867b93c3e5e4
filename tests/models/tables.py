"""The variants once more, written out by hand from the publications and sources of their families, and what follows from
that: names and shapes of all tensors, parameters, multiply-adds, and a forward pass of plain torch functions.

Nothing here comes from ``mnv3_fast``: these are the expected values of the tests of the table of variants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Kernel size, squeeze-excite, activation, stride of the blocks (Howard et al. 2019, tables 1 and 2).
LARGE = (
    "3-R1 3-R2 3-R1 5SR2 5SR1 5SR1 3-H2 3-H1 3-H1 3-H1 3SH1 3SH1 5SH2 5SH1 5SH1",
    "16/16 64/24 72/24 72/40 120/40 120/40 240/80 200/80 184/80 184/80 480/112 672/112 672/160 960/160 960/160",
)
SMALL = (
    "3SR2 3-R2 3-R1 5SH2 5SH1 5SH1 5SH1 5SH1 5SH2 5SH1 5SH1",
    "16/16 72/24 88/24 96/40 240/40 240/40 120/48 144/48 288/96 576/96 576/96",
)
# Hidden and output channels where hidden ones follow the table (torchvision, Paddle) ...
TABLE_SCALED = {
    (
        "large",
        0.75,
    ): "16/16 48/24 56/24 56/32 88/32 88/32 184/64 152/64 136/64 136/64 360/88 504/88 504/120 720/120 720/120",
    ("large", 0.5): "8/8 32/16 40/16 40/24 64/24 64/24 120/40 104/40 96/40 96/40 240/56 336/56 336/80 480/80 480/80",
    ("large", 0.35): "8/8 24/8 24/8 24/16 40/16 40/16 88/32 72/32 64/32 64/32 168/40 232/40 232/56 336/56 336/56",
    (
        "large",
        1.25,
    ): "24/24 80/32 88/32 88/48 152/48 152/48 304/104 248/104 232/104 232/104 600/144 840/144 840/200 1200/200 1200/200",
    ("small", 0.75): "16/16 56/24 64/24 72/32 184/32 184/32 88/40 112/40 216/72 432/72 432/72",
    ("small", 0.5): "8/8 40/16 48/16 48/24 120/24 120/24 64/24 72/24 144/48 288/48 288/48",
    ("small", 0.35): "8/8 24/8 32/8 32/16 88/16 88/16 40/16 48/16 104/32 200/32 200/32",
    ("small", 1.25): "24/24 88/32 112/32 120/48 304/48 304/48 152/64 184/64 360/120 720/120 720/120",
}
# ... and where they follow the block's own input (TensorFlow, timm, mmpretrain).
INPUT_SCALED = {
    (
        "large",
        0.75,
    ): "16/16 64/24 72/24 72/32 96/32 96/32 192/64 160/64 144/64 144/64 384/88 528/88 528/120 720/120 720/120",
    ("small", 0.75): "16/16 72/24 88/24 96/32 192/32 192/32 96/40 120/40 240/72 432/72 432/72",
    ("small", 0.5): "16/8 40/16 56/16 64/24 144/24 144/24 72/24 72/24 144/48 288/48 288/48",
}
SQUEEZED = {  # channels inside of squeeze-excite; of the others a quarter, rounded as all channels are
    LARGE[1]: [24, 32, 32, 120, 168, 168, 240, 240],
    SMALL[1]: [8, 24, 64, 64, 32, 40, 72, 144, 144],
    INPUT_SCALED["small", 0.75]: [8, 24, 48, 48, 24, 32, 64, 112, 112],
    INPUT_SCALED["small", 0.5]: [8, 16, 40, 40, 24, 24, 40, 72, 72],
}


@dataclass(frozen=True)
class Block:
    """One block as it is built."""

    kernel: int
    inputs: int
    hidden: int
    outputs: int
    squeezed: int
    activation: str
    stride: int
    expands: bool


@dataclass(frozen=True)
class Net:
    """One network as it is built."""

    stem: int
    blocks: tuple[Block, ...]
    tail: int
    last: int
    eps: float
    classes: int = 1000
    activation: str = "H"
    head_bias: bool = True
    same: bool = False
    slope: float = 1 / 6
    scale: float = 1.0


def net(
    size: str, channels: str | None = None, *, stem: int = 16, tail: int | None = None, last: int | None = None,
    eps: float = 1e-3, minimal: bool = False, paddle: bool = False, same: bool = False, classes: int = 1000,
) -> Net:  # fmt: skip
    """A network from its lines of the tables."""
    pattern, full = LARGE if size == "large" else SMALL
    channels = channels or full
    squeezed = iter(SQUEEZED.get(channels, []))
    blocks = []
    inputs = stem
    for code, widths in zip(pattern.split(), channels.split(), strict=True):
        hidden, outputs = (int(width) for width in widths.split("/"))
        inside = 0
        if code[1] == "S" and not minimal:
            inside = hidden // 4 if paddle else next(squeezed, None) or eighths(hidden // 4)
        blocks.append(
            Block(
                3 if minimal else int(code[0]), inputs, hidden, outputs, inside, "R" if minimal else code[2],
                int(code[3]), paddle or hidden != inputs,
            )
        )  # fmt: skip
        inputs = outputs
    return Net(
        stem, tuple(blocks), tail or 6 * inputs, last or {"large": 1280, "small": 1024}[size], eps, classes,
        "R" if minimal else "H", not paddle, same, 0.2 if paddle else 1 / 6, 0.8 if paddle else 1.0,
    )  # fmt: skip


def eighths(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and at least 90% of the number."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def paddle_net(size: str, width: float) -> Net:
    """PaddleClas' rules."""
    tail = eighths((960 if size == "large" else 576) * width)
    channels = TABLE_SCALED.get((size, width))
    return net(size, channels, stem=eighths(16 * width), tail=tail, last=1280, eps=1e-5, paddle=True)


def torchvision_net(size: str, width: float) -> Net:
    """torchvision's rules."""
    last = eighths((1280 if size == "large" else 1024) * width)
    return net(size, TABLE_SCALED.get((size, width)), stem=eighths(16 * width), last=last)


NETS = {
    "mobilenet_v3_large": net("large"),
    "mobilenet_v3_small": net("small"),
    "mobilenet-v3-small-050_8xb128_in1k": net("small", INPUT_SCALED["small", 0.5], eps=1e-5),
    "mobilenet-v3-small-075_8xb128_in1k": net("small", INPUT_SCALED["small", 0.75], eps=1e-5),
    "mobilenet-v3-small_8xb128_in1k": net("small"),
    "mobilenet-v3-large_8xb128_in1k": net("large"),
    "mobilenet-v3-small_8xb16_cifar10": net("small", last=1280, classes=10),
    "keras_mobilenetv3_large_100": net("large", same=True),
    "keras_mobilenetv3_large_075": net("large", INPUT_SCALED["large", 0.75], same=True),
    "keras_mobilenetv3_large_minimalistic_100": net("large", minimal=True, same=True),
    "keras_mobilenetv3_small_100": net("small", same=True),
    "keras_mobilenetv3_small_075": net("small", INPUT_SCALED["small", 0.75], same=True),
    "keras_mobilenetv3_small_minimalistic_100": net("small", minimal=True, same=True),
    **{
        f"MobileNetV3_{size}_x{width:g}".replace(".", "_") + ("_0" if width == 1 else ""): paddle_net(size, width)
        for size in ("large", "small")
        for width in (0.35, 0.5, 0.75, 1.0, 1.25)
    },
}

NORM = ("weight", "bias", "running_mean", "running_var")


def tensors(net: Net, style: str = "torchvision") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a state_dict in order, in torchvision's names or "mmpretrain"'s."""
    conv, norm, names = {
        "torchvision": ("{}.0", "{}.1", _torchvision_names),
        "mmpretrain": ("{}.conv", "{}.bn", _mmpretrain_names),
    }[style]

    def layer(name: str, outputs: int, inputs: int, kernel: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield conv.format(name) + ".weight", (outputs, inputs, kernel, kernel)
        yield from ((f"{norm.format(name)}.{part}", (outputs,)) for part in NORM)
        yield f"{norm.format(name)}.num_batches_tracked", ()

    stem, blocks, tail, head = names(net)
    yield from layer(stem, net.stem, 3, 3)
    for block, (expand, depthwise, fc1, fc2, project) in zip(net.blocks, blocks, strict=True):
        if block.expands:
            yield from layer(expand, block.hidden, block.inputs, 1)
        yield from layer(depthwise, block.hidden, 1, block.kernel)
        if block.squeezed:
            shapes = (block.squeezed, block.hidden, 1, 1), (block.hidden, block.squeezed, 1, 1)
            for name, shape in zip((fc1, fc2), shapes, strict=True):
                yield f"{name}.weight", shape
                yield f"{name}.bias", shape[:1]
        yield from layer(project, block.outputs, block.hidden, 1)
    yield from layer(tail, net.tail, net.blocks[-1].outputs, 1)
    yield f"{head[0]}.weight", (net.last, net.tail)
    if net.head_bias:
        yield f"{head[0]}.bias", (net.last,)
    yield f"{head[1]}.weight", (net.classes, net.last)
    yield f"{head[1]}.bias", (net.classes,)


def _torchvision_names(net: Net) -> tuple:
    blocks = []
    for index, block in enumerate(net.blocks, 1):
        parts = [f"features.{index}.block.{part}" for part in range(4)]
        expand = parts.pop(0) if block.expands else ""
        depthwise = parts.pop(0)
        squeeze = parts.pop(0) if block.squeezed else ""
        blocks.append((expand, depthwise, f"{squeeze}.fc1", f"{squeeze}.fc2", parts[0]))
    return "features.0", blocks, f"features.{len(blocks) + 1}", ("classifier.0", "classifier.3")


def _mmpretrain_names(net: Net) -> tuple:
    parts = ("expand_conv", "depthwise_conv", "se.conv1.conv", "se.conv2.conv", "linear_conv")
    blocks = [tuple(f"backbone.layer{i}.{part}" for part in parts) for i in range(1, len(net.blocks) + 1)]
    return "backbone.layer0", blocks, f"backbone.layer{len(blocks) + 1}", ("head.layers.0.fc", "head.layers.1.fc")


def parameters(net: Net) -> int:
    """Trainable numbers."""
    counted = [shape for name, shape in tensors(net) if "running" not in name and shape]
    return sum(torch.Size(shape).numel() for shape in counted)


def multiply_adds(net: Net, size: int = 224) -> int:
    """Of convolutions and fully connected layers, one for each weight and output pixel."""
    pixels = -(-size // 2)
    count = 27 * net.stem * pixels**2
    for block in net.blocks:
        count += block.expands * block.inputs * block.hidden * pixels**2
        pixels = -(-pixels // block.stride)
        count += (block.kernel**2 + block.outputs) * block.hidden * pixels**2 + 2 * block.squeezed * block.hidden
    return count + net.blocks[-1].outputs * net.tail * pixels**2 + net.tail * net.last + net.last * net.classes


def forward(net: Net, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network as plain functions, in the dtype of the weights."""
    act = {"R": torch.relu, "H": lambda y: y * (y + 3).clamp(0, 6) / 6, "": lambda y: y}

    def layer(name: str, y: Tensor, activation: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.0.weight"]
        kernel = weight.shape[-1]
        y = functional.conv2d(pad(y, kernel, stride), weight, None, stride, 0, 1, groups)
        scale, shift, mean, variance = (state[f"{name}.1.{part}"].view(-1, 1, 1) for part in NORM)
        return act[activation]((y - mean) / (variance + net.eps).sqrt() * scale + shift)

    def pad(y: Tensor, kernel: int, stride: int) -> Tensor:
        if not net.same:
            return functional.pad(y, [kernel // 2] * 4)
        sides = []
        for length in (y.shape[3], y.shape[2]):
            total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            sides += [total // 2, total - total // 2]
        return functional.pad(y, sides)

    stem, blocks, tail, head = _torchvision_names(net)
    x = layer(stem, x, net.activation, 2)
    for block, (expand, depthwise, fc1, fc2, project) in zip(net.blocks, blocks, strict=True):
        y = layer(expand, x, block.activation) if block.expands else x
        y = layer(depthwise, y, block.activation, block.stride, block.hidden)
        if block.squeezed:
            inside = functional.conv2d(y.mean((2, 3), keepdim=True), state[f"{fc1}.weight"], state[f"{fc1}.bias"])
            gate = functional.conv2d(inside.relu(), state[f"{fc2}.weight"], state[f"{fc2}.bias"])
            y = y * (net.slope * gate + 0.5).clamp(0, 1)
        y = layer(project, y, "")
        x = x + y if block.stride == 1 and block.inputs == block.outputs else y
    x = layer(tail, x, net.activation).mean((2, 3))
    x = act[net.activation](functional.linear(x, state[f"{head[0]}.weight"], state.get(f"{head[0]}.bias")))
    return functional.linear(net.scale * x, state[f"{head[1]}.weight"], state[f"{head[1]}.bias"])
