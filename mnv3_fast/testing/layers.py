"""The real layers of both networks, walked off torchvision's own models at 224 x 224."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mnv3_fast.models.description import BlockDescription, ConvLayer, describe_net
from mnv3_fast.ops.elements import output_size


@dataclass(frozen=True)
class RealLayer:
    """One layer: the op that runs it, its name in the network, sizes of its input, and what it has.

    ``inputs`` and ``outputs`` are channels; ``squeeze`` the squeezed channels of squeeze-excite.
    """

    op: str
    name: str
    inputs: int
    outputs: int
    height: int
    width: int
    kernel: int = 1
    stride: int = 1
    activation: str = "none"
    hidden: int = 0
    squeeze: int = 0
    residual: bool = False
    gated: bool = False
    expanded: bool = True

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return output_size(self.height, self.kernel, self.stride, 2 * (self.kernel // 2), 1)

    @property
    def out_width(self) -> int:
        """Pixels of an output row."""
        return output_size(self.width, self.kernel, self.stride, 2 * (self.kernel // 2), 1)

    def macs(self) -> int:
        """Multiply-adds for one image."""
        pixels, out_pixels = self.height * self.width, self.out_height * self.out_width
        taps = self.kernel * self.kernel
        if self.op == "stem_conv":
            return self.inputs * self.outputs * taps * out_pixels
        if self.op == "depthwise_conv":
            return self.outputs * taps * out_pixels
        if self.op == "inverted_residual":
            expand = self.inputs * self.hidden * pixels if self.expanded else 0
            return expand + self.hidden * (taps + self.outputs) * out_pixels + 2 * self.hidden * self.squeeze
        if self.op in ("squeeze_excite_gate", "squeeze_excite"):
            return 2 * self.inputs * self.squeeze
        return self.inputs * self.outputs * pixels

    def bytes(self) -> int:
        """Unique bytes for one image in float32: input, output and weights, each once."""
        maps = self.inputs * self.height * self.width + self.outputs * self.out_height * self.out_width
        taps = self.kernel * self.kernel
        weights = {
            "stem_conv": self.inputs * self.outputs * taps,
            "pointwise_conv": self.inputs * self.outputs,
            "depthwise_conv": self.outputs * taps,
            "inverted_residual": self.hidden * (self.inputs * self.expanded + taps + self.outputs + 2 * self.squeeze),
        }.get(self.op, 2 * self.inputs * self.squeeze)
        if self.op == "squeeze_excite_gate":
            maps = 2 * self.inputs
        return 4 * (maps + weights)


@functools.cache
def real_layers(net: str) -> tuple[RealLayer, ...]:
    """All layers of "large" or "small" at 224 x 224, in order: stem, then each block and its parts, then the tail."""
    model = getattr(torchvision.models, f"mobilenet_v3_{net}")().eval()
    description = describe_net(model)
    sizes = _input_sizes(model)
    assert description.stem is not None
    assert description.tail is not None
    layers = [_conv("stem_conv", "stem", description.stem, sizes[0])]
    for i, block in enumerate(description.blocks):
        layers += _block(f"b{i}", block, sizes[1 + i])
    layers.append(_conv("pointwise_conv", "tail", description.tail, sizes[-1]))
    return tuple(layers)


def _input_sizes(model: nn.Module) -> list[tuple[int, int]]:
    sizes: list[tuple[int, int]] = []
    handles = [
        child.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[2:])))
        for child in model.features
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    for handle in handles:
        handle.remove()
    return sizes


def _conv(op: str, name: str, layer: ConvLayer, size: tuple[int, int], **extra: bool) -> RealLayer:
    conv = layer.conv
    return RealLayer(
        op,
        name,
        conv.in_channels,
        conv.out_channels,
        *size,
        conv.kernel_size[0],
        conv.stride[0],
        layer.activation,
        **extra,
    )


def _block(name: str, block: BlockDescription, size: tuple[int, int]) -> list[RealLayer]:
    layers = []
    conv = block.depthwise.conv
    hidden, kernel, stride = conv.in_channels, conv.kernel_size[0], conv.stride[0]
    squeeze = block.squeeze_excite.fc1.out_channels if block.squeeze_excite else 0
    inputs = block.expand.conv.in_channels if block.expand else hidden
    outputs = block.project.conv.out_channels
    layers.append(
        RealLayer(
            "inverted_residual", name, inputs, outputs, *size, kernel, stride, block.depthwise.activation, hidden,
            squeeze, block.residual, expanded=block.expand is not None,
        )
    )  # fmt: skip
    if block.expand:
        layers.append(_conv("pointwise_conv", f"{name}.expand", block.expand, size))
    depthwise = _conv("depthwise_conv", f"{name}.depthwise", block.depthwise, size)
    layers.append(depthwise)
    out_size = depthwise.out_height, depthwise.out_width
    if squeeze:
        layers.append(RealLayer("squeeze_excite_gate", f"{name}.gate", hidden, hidden, 1, 1, squeeze=squeeze))
        layers.append(RealLayer("squeeze_excite", f"{name}.squeeze_excite", hidden, hidden, *out_size, squeeze=squeeze))
    layers.append(
        _conv("pointwise_conv", f"{name}.project", block.project, out_size, residual=block.residual, gated=squeeze > 0)
    )
    return layers


def model_macs(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds of a model for one image, as torch's FLOP counter counts them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, height, width))
    return counter.get_total_flops() // 2


@functools.cache
def network_macs(net: str, size: int = 224) -> int:
    """Multiply-adds of torchvision's "large" or "small" for one image."""
    return model_macs(getattr(torchvision.models, f"mobilenet_v3_{net}")().eval(), size, size)


def double(value: object) -> object:
    """A tensor or a tuple or list of tensors in fp64; anything else, and integers, as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(double(item) for item in value)
    return value
