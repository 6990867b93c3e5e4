"""Fused modules, for ``accelerate`` and for nets of one's own: drop-ins for torchvision's classes of the same names.

Beside them layers that torch does not have: TensorFlow's padding, Paddle's gate and dropout.
"""

from mnv3_fast.nn.containers import Sequential
from mnv3_fast.nn.layers import Conv2dSame, DownscaleDropout, Hardsigmoid
from mnv3_fast.nn.torchvision_blocks import Conv2dNormActivation, InvertedResidual, SqueezeExcitation

__all__ = [
    "Conv2dNormActivation",
    "Conv2dSame",
    "DownscaleDropout",
    "Hardsigmoid",
    "InvertedResidual",
    "Sequential",
    "SqueezeExcitation",
]
