"""Element math and small formulas shared by the references: the specification of csrc/simd/activation.h."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = {"none": 0, "relu": 1, "hardswish": 2}
GATES = {"hardsigmoid": 0, "sigmoid": 1}


def activate(x: Tensor, activation: int) -> Tensor:
    """0: x, 1: max(x, 0), 2: x * clip(x + 3, 0, 6) / 6 (Howard et al. 2019, eq. 3)."""
    if activation == 1:
        return torch.relu(x)
    if activation == 2:
        return functional.hardswish(x)
    return x


def apply_gate(x: Tensor, gate: int, slope: float) -> Tensor:
    """0: clip(slope * x + 1/2, 0, 1), 1: the logistic sigmoid."""
    if gate == 1:
        return torch.sigmoid(x)
    return torch.clamp(slope * x + 0.5, 0, 1)


def normalize(
    x: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    bn_mean: Tensor | None,
    bn_var: Tensor | None,
    bn_eps: float,
) -> Tensor:
    """BatchNorm with running statistics; x itself where there is none."""
    if bn_mean is None or bn_var is None:
        return x
    return functional.batch_norm(x, bn_mean, bn_var, bn_weight, bn_bias, False, 0.0, bn_eps)


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Length of a convolution's output; ``padding`` counts both sides."""
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1


def empty_nhwc(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    """An uninitialised map [n, c, h, w] with strides (h*w*c, 1, w*c, c), also where torch's layouts coincide."""
    return torch.empty_strided((n, c, h, w), (h * w * c, 1, w * c, c), dtype=like.dtype, device=like.device)


def as_nhwc(x: Tensor) -> Tensor:
    """A copy of a map with the strides that every op's output has."""
    return empty_nhwc(x, *x.shape).copy_(x)


def dense_nhwc(x: Tensor) -> Tensor:
    """A map that lies in memory as NHWC: itself, or a copy."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else as_nhwc(x)
