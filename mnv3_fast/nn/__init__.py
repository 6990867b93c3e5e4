"""Fused modules, for ``accelerate`` and for nets of one's own: drop-ins for torchvision's classes of the same names."""

from mnv3_fast.nn.containers import Sequential
from mnv3_fast.nn.torchvision_blocks import Conv2dNormActivation, InvertedResidual, SqueezeExcitation

__all__ = ["Conv2dNormActivation", "InvertedResidual", "Sequential", "SqueezeExcitation"]
