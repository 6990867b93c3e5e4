"""Doubles of the modules of mmcv's in mmpretrain's MobileNetV3; see mmpretrain_doubles.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def of(module: str) -> Callable[[type], type]:
    """A class that says it is defined in a module of the library's."""

    def rename(cls: type) -> type:
        cls.__module__ = module
        return cls

    return rename


@of("mmcv.cnn.bricks.hsigmoid")
class HSigmoid(nn.Module):
    def __init__(self, bias: float = 3, divisor: float = 6, min_value: float = 0, max_value: float = 1) -> None:
        super().__init__()
        self.bias, self.divisor, self.min_value, self.max_value = bias, divisor, min_value, max_value

    def forward(self, x: Tensor) -> Tensor:
        return ((x + self.bias) / self.divisor).clamp_(self.min_value, self.max_value)


@of("mmcv.cnn.bricks.hswish")
class HSwish(nn.Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.act = nn.ReLU6(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.act(x + 3) / 6


@of("mmcv.cnn.bricks.drop")
class DropPath(nn.Module):
    def __init__(self, drop_prob: float = 0.1) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(x.shape[0], 1, 1, 1) >= self.drop_prob
        return x / (1 - self.drop_prob) * kept


@of("mmcv.cnn.bricks.conv_module")
class ConvModule(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        norm: Callable[[int], nn.Module] | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.order = ("conv", "norm", "act")
        self.with_norm, self.with_activation = norm is not None, activation is not None
        self.with_explicit_padding = False
        self.efficient_conv_bn_eval_forward: Any = None
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=norm is None)
        self.stride, self.padding, self.groups = self.conv.stride, padding, groups
        self.norm_name = None
        if norm is not None:
            layer = norm(outputs)
            self.norm_name = "gn" if isinstance(layer, nn.GroupNorm) else "bn"
            self.add_module(self.norm_name, layer)
        if activation is not None:
            self.activate = activation

    @property
    def norm(self) -> nn.Module | None:
        return getattr(self, self.norm_name) if self.norm_name else None

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        for step in self.order:
            if step == "conv":
                x = self.conv(x)
            elif step == "norm" and norm and self.with_norm:
                x = self.norm(x)
            elif step == "act" and activate and self.with_activation:
                x = self.activate(x)
        return x
