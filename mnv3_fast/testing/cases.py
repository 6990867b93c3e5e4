"""The one case maker: inputs of each op on real layers of MobileNetV3 and at the edges, in every layout."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.testing.layers import RealLayer, real_layers

LAYOUTS = ("channels_last", "contiguous", "sliced", "expanded")
EDGE_CHANNELS = (1, 7, 8, 9, 15, 16, 17, 24, 31, 33)
OPS = (
    "fold_batch_norm",
    "stem_conv",
    "pointwise_conv",
    "depthwise_conv",
    "squeeze_excite_gate",
    "squeeze_excite",
    "inverted_residual",
    "network",
)


@dataclass(frozen=True)
class Case:
    """One call of ``mnv3_fast.ops.<op>``: :meth:`make` gives its arguments, the same every time."""

    op: str
    name: str
    build: Callable[[torch.Generator, str], tuple[tuple, dict[str, Any]]] = field(repr=False)
    layout: str = "channels_last"

    def make(self) -> tuple[tuple, dict[str, Any]]:
        """Positional and keyword arguments, float32, from a seed that belongs to the case."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.op}/{self.name}/{self.layout}".encode()))
        return self.build(generator, self.layout)

    def __str__(self) -> str:
        return f"{self.name}-{self.layout}"


def map_of(generator: torch.Generator, n: int, c: int, h: int, w: int, layout: str = "channels_last") -> Tensor:
    """A random map [n, c, h, w] in a layout: dense NHWC or NCHW, a window of a larger buffer, or broadcast.

    "expanded" repeats one image over the batch, or one row over the height of a single image.
    """
    if layout == "sliced":
        buffer = torch.randn(n, c + 3, h + 2, w + 3, generator=generator).contiguous(memory_format=torch.channels_last)
        return buffer[:, 2 : 2 + c, 1 : 1 + h, 2 : 2 + w]
    if layout == "expanded":
        shape = (1, c, h, w) if n > 1 else (n, c, 1, w)
        return torch.randn(shape, generator=generator).expand(n, c, h, w)
    dense = torch.randn(n, c, h, w, generator=generator)
    return dense.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else dense


def batch_norm_of(generator: torch.Generator, channels: int, eps: float = 1e-3, affine: bool = True) -> tuple:
    """BatchNorm as a parity model has it: nothing trivial in any vector; weight and bias None if it is not affine."""
    norm = (
        torch.rand(channels, generator=generator) * 0.6 + 0.7,
        torch.randn(channels, generator=generator) * 0.2,
        torch.randn(channels, generator=generator) * 0.3,
        torch.rand(channels, generator=generator) + 0.5,
        eps,
    )
    return norm if affine else (None, None, *norm[2:])


def bias_of(generator: torch.Generator, channels: int, wanted: bool) -> Tensor | None:
    """A bias [channels], or None."""
    return torch.randn(channels, generator=generator) * 0.3 if wanted else None


def weight_of(generator: torch.Generator, *shape: int) -> Tensor:
    """N(0, 2 / fan_in)."""
    fan_in = max(1, torch.Size(shape[1:]).numel())
    return torch.randn(*shape, generator=generator) * (2 / fan_in) ** 0.5


def loud(build: Callable) -> Callable:
    """A builder with eight times the input: many sums pass the 6 at which ReLU6 clips."""

    def louder(generator: torch.Generator, layout: str) -> tuple[tuple, dict[str, Any]]:
        args, keywords = build(generator, layout)
        return (args[0] * 8, *args[1:]), keywords

    return louder


def squeeze_excite_of(generator: torch.Generator, channels: int, squeeze: int, bias: bool = True) -> tuple:
    """Weights and biases (or None) of both layers."""
    fc1, fc2 = weight_of(generator, squeeze, channels, 1, 1), weight_of(generator, channels, squeeze, 1, 1)
    if not bias:
        return fc1, None, fc2, None
    return fc1, torch.randn(squeeze, generator=generator) * 0.1, fc2, torch.randn(channels, generator=generator)


def depthwise(
    n: int, c: int, h: int, w: int, kernel: int | tuple, bias: bool = False, affine: bool = True, **options: Any
) -> Callable:
    """A builder of ``depthwise_conv`` cases."""
    kernel_h, kernel_w = (kernel, kernel) if isinstance(kernel, int) else kernel

    def build(generator: torch.Generator, layout: str) -> tuple[tuple, dict[str, Any]]:
        x = map_of(generator, n, c, h, w, layout)
        weight = weight_of(generator, c, 1, kernel_h, kernel_w)
        norm = batch_norm_of(generator, c, affine=affine)
        return (x, weight, bias_of(generator, c, bias)), {"batch_norm": norm, "padding": kernel_h // 2, **options}

    return build


def pointwise(
    n: int,
    c: int,
    h: int,
    w: int,
    outputs: int,
    gated: bool = False,
    residual: bool = False,
    bias: bool = False,
    affine: bool = True,
    flat: bool = False,
    **options: Any,
) -> Callable:
    """A builder of ``pointwise_conv`` cases; ``flat`` gives the weight as [O, C]."""

    def build(generator: torch.Generator, layout: str) -> tuple[tuple, dict[str, Any]]:
        x = map_of(generator, n, c, h, w, layout)
        keywords = {"batch_norm": batch_norm_of(generator, outputs, affine=affine), **options}
        if gated:
            keywords["gate"] = torch.rand(n, c, generator=generator)
        if residual:
            keywords["residual"] = map_of(generator, n, outputs, h, w, layout)
        weight = weight_of(generator, outputs, c, *([] if flat else [1, 1]))
        return (x, weight, bias_of(generator, outputs, bias)), keywords

    return build


def stem(
    n: int,
    c: int,
    h: int,
    w: int,
    outputs: int,
    kernel: int | tuple[int, int] = 3,
    bytes: bool = False,
    bias: bool = False,
    affine: bool = True,
    **options: Any,
) -> Callable:
    """A builder of ``stem_conv`` cases; with ``bytes`` a uint8 image and its normalisation."""
    kernel_h, kernel_w = (kernel, kernel) if isinstance(kernel, int) else kernel

    def build(generator: torch.Generator, layout: str) -> tuple[tuple, dict[str, Any]]:
        x = map_of(generator, n, c, h, w, layout)
        norm = batch_norm_of(generator, outputs, affine=affine)
        keywords = {"batch_norm": norm, "padding": kernel_h // 2, **options}
        if bytes:
            x = (x * 60 + 128).clamp(0, 255).to(torch.uint8)
            keywords |= {"scale": torch.rand(c, generator=generator) / 60, "shift": torch.randn(c, generator=generator)}
        weight = weight_of(generator, outputs, c, kernel_h, kernel_w)
        return (x, weight, bias_of(generator, outputs, bias)), keywords

    return build


def gate(n: int, c: int, squeeze: int, bias: bool = True, **options: Any) -> Callable:
    """A builder of ``squeeze_excite_gate`` cases."""

    def build(generator: torch.Generator, layout: str) -> tuple[tuple, dict[str, Any]]:
        if layout == "sliced":
            mean = torch.randn(n, c + 2, generator=generator)[:, 1 : 1 + c]
        elif layout == "expanded":
            mean = torch.randn(1, c, generator=generator).expand(n, c)
        else:
            mean = torch.randn(n, c, generator=generator)
        return (mean, *squeeze_excite_of(generator, c, squeeze, bias)), dict(options)

    return build


def squeeze_excite(
    n: int, c: int, h: int, w: int, squeeze: int, bias: bool = True, constant: bool = False, **options: Any
) -> Callable:
    """A builder of ``squeeze_excite`` cases; a constant map rounds the same way at each step of a sum."""

    def build(generator: torch.Generator, layout: str) -> tuple[tuple, dict[str, Any]]:
        x = map_of(generator, n, c, h, w, layout)
        x = x[:, :, :1, :1].expand_as(x) if constant else x
        return (x, *squeeze_excite_of(generator, c, squeeze, bias)), dict(options)

    return build


def fold(outputs: int, *rest: int, bias: bool = False, affine: bool = True) -> Callable:
    """A builder of ``fold_batch_norm`` cases."""

    def build(generator: torch.Generator, layout: str) -> tuple[tuple, dict[str, Any]]:
        norm = batch_norm_of(generator, outputs, affine=affine)
        return (weight_of(generator, outputs, *rest), bias_of(generator, outputs, bias), norm), {}

    return build


def block(
    n: int,
    c: int,
    h: int,
    w: int,
    hidden: int,
    outputs: int,
    kernel: int,
    squeeze: int = 0,
    bias: bool = False,
    affine: bool = True,
    norm: bool = True,
    **options: Any,
) -> Callable:
    """A builder of ``inverted_residual`` cases; hidden = 0 leaves the expansion out."""

    def build(generator: torch.Generator, layout: str) -> tuple[tuple, dict[str, Any]]:
        def layer(*shape: int) -> tuple:
            batch_norm = batch_norm_of(generator, shape[0], affine=affine) if norm else None
            return weight_of(generator, *shape), bias_of(generator, shape[0], bias), batch_norm

        width = hidden or c
        keywords = {"padding": kernel // 2, **options}
        if hidden:
            keywords["expand"] = layer(hidden, c, 1, 1)
        if squeeze:
            keywords["squeeze_excite"] = squeeze_excite_of(generator, width, squeeze)
        x = map_of(generator, n, c, h, w, layout)
        return (x, layer(width, 1, kernel, kernel), layer(outputs, width, 1, 1)), keywords

    return build


def real_case(layer: RealLayer, batch: int = 1, shrink: int = 0, layout: str = "channels_last", net: str = "") -> Case:
    """The case of a real layer; with ``shrink`` its map is at most that many pixels each way."""
    h = min(layer.height, shrink) if shrink else layer.height
    w = min(layer.width, shrink) if shrink else layer.width
    n, c, act = batch, layer.inputs, layer.activation
    builders: dict[str, Callable[[], Callable]] = {
        "stem_conv": lambda: stem(n, c, h, w, layer.outputs, layer.kernel, stride=layer.stride, activation=act),
        "pointwise_conv": lambda: pointwise(n, c, h, w, layer.outputs, layer.gated, layer.residual, activation=act),
        "depthwise_conv": lambda: depthwise(n, c, h, w, layer.kernel, stride=layer.stride, activation=act),
        "squeeze_excite_gate": lambda: gate(n, c, layer.squeeze),
        "squeeze_excite": lambda: squeeze_excite(n, c, h, w, layer.squeeze),
        "inverted_residual": lambda: block(
            n, c, h, w, layer.hidden if layer.expanded else 0, layer.outputs, layer.kernel, layer.squeeze,
            stride=layer.stride, activation=act, residual=layer.residual,
        ),
    }  # fmt: skip
    return Case(layer.op, f"{net}.{layer.name}".lstrip("."), builders[layer.op](), layout)


def _distinct(op: str) -> Iterator[tuple[str, RealLayer]]:
    """The layers of both networks that differ in anything but their name."""
    seen = set()
    for net in ("large", "small"):
        for layer in real_layers(net):
            key = tuple(value for name, value in vars(layer).items() if name != "name")
            if layer.op == op and key not in seen:
                seen.add(key)
                yield net, layer


def op_cases(op: str, scope: str = "quick") -> list[Case]:
    """Cases of an op: real layers (``quick``: maps of at most 15 pixels a side) and the edges, layouts in turn.

    Raises:
        ValueError: for an unknown op or scope.
    """
    from mnv3_fast.testing.edges import EDGES

    if op not in OPS or scope not in ("quick", "full"):
        raise ValueError(f"op_cases: op must be one of {', '.join(OPS)} and scope quick or full, got {op!r}, {scope!r}")
    shrink = 15 if scope == "quick" else 0
    real = [real_case(layer, 1 + i % 2, shrink, net=net) for i, (net, layer) in enumerate(_distinct(op))]
    cases = real + [Case(op, name, build) for name, build in EDGES[op]]
    if op in ("fold_batch_norm",):
        return cases
    if scope == "full":
        return [Case(c.op, c.name, c.build, layout) for c in cases for layout in LAYOUTS]
    return [Case(c.op, c.name, c.build, LAYOUTS[i % len(LAYOUTS)]) for i, c in enumerate(cases)]
