"""A depthwise convolution with BatchNorm and activation, and the channel means that squeeze-excite needs of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from mnv3_fast.ops.elements import activate, normalize, resolve_window


def depthwise_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    bn_mean: Tensor | None,
    bn_var: Tensor | None,
    bn_eps: float,
    stride_h: int,
    stride_w: int,
    pad_left: int,
    pad_right: int,
    pad_top: int,
    pad_bottom: int,
    dilation_h: int,
    dilation_w: int,
    activation: int,
) -> Tensor:
    """act(BN(conv(pad(input)))), one filter a channel: [N, C, H, W] -> [N, C, OH, OW]."""
    window = stride_h, stride_w, pad_left, pad_right, pad_top, pad_bottom, dilation_h, dilation_w
    x = functional.pad(input, resolve_window(input.shape[2:], weight.shape[2:], window)[2:6])
    x = functional.conv2d(x, weight, bias, (stride_h, stride_w), 0, (dilation_h, dilation_w), weight.shape[0])
    return activate(normalize(x, bn_weight, bn_bias, bn_mean, bn_var, bn_eps), activation)


def depthwise_conv_mean(*args: Any) -> tuple[Tensor, Tensor]:
    """The output and its means over H and W, [N, C]."""
    output = depthwise_conv(*args)
    return output, output.mean((2, 3))
