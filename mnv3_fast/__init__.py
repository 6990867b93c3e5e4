"""MobileNetV3 at hardware speed: a drop-in for torchvision's and timm's models with fused kernels."""

from mnv3_fast import _library
from mnv3_fast._version import __version__

__all__ = ["__version__", "_library"]
