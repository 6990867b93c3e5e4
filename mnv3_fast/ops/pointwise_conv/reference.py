"""A 1x1 convolution with what stands around it: the gate before it, BatchNorm, activation and residual after."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from mnv3_fast.ops.elements import activate, normalize


def pointwise_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    bn_mean: Tensor | None,
    bn_var: Tensor | None,
    bn_eps: float,
    gate: Tensor | None,
    residual: Tensor | None,
    activation: int,
) -> Tensor:
    """act(BN(conv1x1(input * gate))) + residual: [N, K, H, W] -> [N, O, H, W]."""
    x = input if gate is None else input * gate[:, :, None, None]
    x = functional.conv2d(x, weight.view(weight.shape[0], -1, 1, 1), bias)
    x = activate(normalize(x, bn_weight, bn_bias, bn_mean, bn_var, bn_eps), activation)
    return x if residual is None else x + residual
