"""Layers of TensorFlow's and Paddle's graphs of MobileNetV3 that torch does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnv3_fast.ops.elements import apply_gate, same_padding


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's padding SAME, which depends on the size of the input.

    Along each axis ``max((ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)`` zeros are added,
    the smaller half in front, so that there are ``ceil(size / stride)`` outputs. torch's ``padding="same"`` is for
    stride 1 only. Source: https://www.tensorflow.org/api_docs/python/tf/nn (notes on padding); timm's module of the
    same name computes the same.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype: as of nn.Conv2d.

    Shape:
        [N, C, H, W] -> [N, O, ceil(H / stride), ceil(W / stride)], or the same without N; the weight's dtype.

    Raises:
        ValueError, RuntimeError: as nn.Conv2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"dilation": dilation, "groups": groups, "bias": bias, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, stride, 0, **options)

    def forward(self, input: Tensor) -> Tensor:
        """Pads and convolves."""
        top, bottom = same_padding(input.shape[-2], self.kernel_size[0], self.stride[0], self.dilation[0])
        left, right = same_padding(input.shape[-1], self.kernel_size[1], self.stride[1], self.dilation[1])
        return self._conv_forward(functional.pad(input, [left, right, top, bottom]), self.weight, self.bias)

    def extra_repr(self) -> str:
        """As nn.Conv2d's, with the padding."""
        return f"{super().extra_repr()}, padding=same"


class Hardsigmoid(nn.Module):
    """The piecewise linear gate ``clip(slope * x + 0.5, 0, 1)``.

    torch's nn.Hardsigmoid has the slope 1/6 (Howard et al. 2019), PaddleClas' MobileNetV3 has 0.2. Source:
    https://github.com/PaddlePaddle/PaddleClas, ppcls/arch/backbone/legendary_models/mobilenet_v3.py, ``Hardsigmoid``.

    Args:
        slope: a positive number.

    Shape:
        Any -> the same, of the input's dtype.

    Raises:
        ValueError: if the slope is not positive and finite.
    """

    def __init__(self, slope: float = 1 / 6) -> None:
        super().__init__()
        if not 0 < slope < float("inf"):
            raise ValueError(f"Hardsigmoid: slope must be positive, got {slope}")
        self.slope = float(slope)

    def forward(self, input: Tensor) -> Tensor:
        """The gate of each value."""
        return apply_gate(input, 0, self.slope)

    def extra_repr(self) -> str:
        """The slope."""
        return f"slope={self.slope:g}"


class DownscaleDropout(nn.Module):
    """Dropout that scales at inference and not in training: PaddlePaddle's mode ``downscale_in_infer``.

    In training values are zeroed with probability p and the others stay as they are; in eval mode all are multiplied
    by 1 - p. Source: https://www.paddlepaddle.org.cn/documentation/docs/en/api/paddle/nn/Dropout_en.html.

    Args:
        p: the probability to be zeroed, from 0 to 1.

    Shape:
        Any -> the same, of the input's dtype.

    Raises:
        ValueError: for another p.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"DownscaleDropout: p must be from 0 to 1, got {p}")
        self.p = float(p)

    def forward(self, input: Tensor) -> Tensor:
        """Masked in training, scaled in eval mode."""
        if self.training:
            return input * torch.empty_like(input).bernoulli_(1 - self.p)
        return input * (1 - self.p)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p:g}"
