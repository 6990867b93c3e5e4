"""The first convolution of the network, on an image, with the normalisation of the image in front of it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from mnv3_fast.ops.elements import activate, normalize, resolve_window


def stem_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    bn_mean: Tensor | None,
    bn_var: Tensor | None,
    bn_eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
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
    """act(BN(conv(pad(input * scale + shift)))): [N, C, H, W] -> [N, O, OH, OW]; the padding's zeros come last."""
    x = input.to(weight.dtype)
    if scale is not None:
        x = x * scale.view(-1, 1, 1)
    if shift is not None:
        x = x + shift.view(-1, 1, 1)
    window = stride_h, stride_w, pad_left, pad_right, pad_top, pad_bottom, dilation_h, dilation_w
    x = functional.pad(x, resolve_window(x.shape[2:], weight.shape[2:], window)[2:6])
    x = functional.conv2d(x, weight, bias, (stride_h, stride_w), 0, (dilation_h, dilation_w))
    return activate(normalize(x, bn_weight, bn_bias, bn_mean, bn_var, bn_eps), activation)
