"""Element math and small formulas shared by the references: the specification of csrc/simd/activation.h."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = {"none": 0, "relu": 1, "hardswish": 2}
GATES = {"hardsigmoid": 0, "sigmoid": 1}
SAME = -1
"""Stands in all four padding ints of a window for TensorFlow's SAME: what an input's size asks for (same_padding)."""


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


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after an axis for ceil(size / stride) outputs, the odd one after (TensorFlow's SAME).

    Source: the notes on padding of https://www.tensorflow.org/api_docs/python/tf/nn. Sizes may be symbolic.
    """
    span = dilation * (kernel - 1) + 1
    total = ((size + stride - 1) // stride - 1) * stride + span - size
    if span < stride:  # else it is not negative, and symbolic sizes stay simple
        total = max(total, 0)
    return total // 2, total - total // 2


def pads_same(window: Sequence[int]) -> bool:
    """Whether the padding of a window (stride h, w, padding left, right, top, bottom, dilation h, w) is SAME."""
    return window[2] == SAME


def resolve_window(size: Sequence[int], kernel: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    """A window with the padding that an input of a size (h, w) gets, for a kernel (h, w): what kernels are given."""
    if not pads_same(window):
        return tuple(window)
    stride_h, stride_w, *_, dilation_h, dilation_w = window
    top, bottom = same_padding(size[0], kernel[0], stride_h, dilation_h)
    left, right = same_padding(size[1], kernel[1], stride_w, dilation_w)
    return stride_h, stride_w, left, right, top, bottom, dilation_h, dilation_w


def convolved_size(size: Sequence[int], kernel: Sequence[int], window: Sequence[int]) -> tuple[int, int]:
    """The size (h, w) of a convolution's output, for an input and a kernel of sizes (h, w)."""
    stride_h, stride_w, left, right, top, bottom, dilation_h, dilation_w = window
    if pads_same(window):
        return (size[0] + stride_h - 1) // stride_h, (size[1] + stride_w - 1) // stride_w
    height = output_size(size[0], kernel[0], stride_h, top + bottom, dilation_h)
    return height, output_size(size[1], kernel[1], stride_w, left + right, dilation_w)


def empty_nhwc(like: Tensor, n: int, c: int, h: int, w: int) -> Tensor:
    """An uninitialised map [n, c, h, w] with strides (h*w*c, 1, w*c, c), also where torch's layouts coincide."""
    return torch.empty_strided((n, c, h, w), (h * w * c, 1, w * c, c), dtype=like.dtype, device=like.device)


def as_nhwc(x: Tensor) -> Tensor:
    """A copy of a map with the strides that every op's output has."""
    return empty_nhwc(x, *x.shape).copy_(x)


def dense_nhwc(x: Tensor) -> Tensor:
    """A map that lies in memory as NHWC: itself, or a copy."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else as_nhwc(x)
