"""Faults to plant: a suite that passes with one of them in place proves nothing.

Each takes a torchvision MobileNetV3 and returns a function of images that computes the network with the fault in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.ops.misc import SqueezeExcitation

Network = Callable[[Tensor], Tensor]


def _blocks(model: nn.Module) -> list[InvertedResidual]:
    return [m for m in model.modules() if isinstance(m, InvertedResidual)]


def _depthwise(block: InvertedResidual) -> nn.Conv2d:
    return next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)


@torch.no_grad()
def lost_tap(model: nn.Module) -> Network:
    """One tap of one depthwise kernel is dropped, for all channels."""
    faulty = copy.deepcopy(model)
    _depthwise(_blocks(faulty)[4]).weight[:, :, 0, 1] = 0
    return faulty


@torch.no_grad()
def dead_gate(model: nn.Module) -> Network:
    """One squeeze-excite gate is off: it multiplies with 1."""
    faulty = copy.deepcopy(model)
    gate = next(m for m in _blocks(faulty)[-2].modules() if isinstance(m, SqueezeExcitation))
    gate.fc2.weight.zero_()
    gate.fc2.bias.fill_(10)
    return faulty


def wrong_eps(model: nn.Module) -> Network:
    """BatchNorm's eps is torch's default instead of the model's."""
    faulty = copy.deepcopy(model)
    for module in faulty.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    return faulty


def shifted_padding(model: nn.Module) -> Network:
    """The padding of one stride-2 depthwise convolution is off by one: (p - 1, p + 1) instead of (p, p)."""
    faulty = copy.deepcopy(model)
    conv = next(c for c in map(_depthwise, _blocks(faulty)) if c.stride == (2, 2))
    pad_h, pad_w = conv.padding
    conv.padding = (0, 0)

    def pad(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (nn.functional.pad(args[0], (pad_w - 1, pad_w + 1, pad_h - 1, pad_h + 1)),)

    conv.register_forward_pre_hook(pad)
    return faulty


def lost_residual_channel(model: nn.Module) -> Network:
    """One channel of one residual connection is lost."""
    faulty = copy.deepcopy(model)
    block = [b for b in _blocks(faulty) if b.use_res_connect][-1]

    block.use_res_connect = False

    def add_the_rest(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        kept = args[0].clone()
        kept[:, 0] = 0
        return output + kept

    block.register_forward_hook(add_the_rest)
    return faulty


def swapped_images(model: nn.Module) -> Network:
    """Two images of a batch change places; for a batch of one, the image is mirrored."""

    def run(images: Tensor) -> Tensor:
        if images.shape[0] < 2:
            return model(images.flip(-1))
        order = [1, 0, *range(2, images.shape[0])]
        return model(images)[order]

    return run


FAULTS: dict[str, Callable[[nn.Module], Network]] = {
    "lost depthwise tap": lost_tap,
    "dead squeeze-excite gate": dead_gate,
    "wrong BatchNorm eps": wrong_eps,
    "padding off by one": shifted_padding,
    "lost residual channel": lost_residual_channel,
    "swapped images": swapped_images,
}
