"""The one table of variants: what each MobileNetV3 is made of, how its images are prepared, what was published of it.

Every variant is built from torchvision's classes, so that one description and one set of kernels serves them all.
Sources: Howard et al. 2019 (tables 1 and 2); mmpretrain ``configs/mobilenet_v3`` and its model page for the figures.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from torch import nn
from torchvision.models._meta import _IMAGENET_CATEGORIES
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes a network's input: short side to ``resize`` pixels, central ``crop``, (x - mean) / std.

    ``mean`` and ``std`` are those of RGB values from 0 to 255.
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class BlockRow:
    """A block at width 1: kernel size, hidden and output channels, squeeze-excite, "RE" or "HS", stride."""

    kernel: int
    hidden: int
    outputs: int
    squeeze: bool
    activation: str
    stride: int


@dataclass(frozen=True)
class Variant:
    """One network. ``published`` are top-1, top-5 (%), parameters (M) and FLOPs (G) as its authors state them.

    ``padding`` is "symmetric" or "same" (TensorFlow's), ``gate_slope`` that of squeeze-excite's hard sigmoid.
    """

    name: str
    blocks: tuple[BlockRow, ...]
    width: float
    last_channel: int
    num_classes: int
    dropout: float
    bn_eps: float
    bn_momentum: float
    preprocessing: Preprocessing
    published: tuple[float, float, float, float] | None
    aliases: tuple[str, ...] = ()
    family: str = "mmpretrain"
    padding: str = "symmetric"
    gate_slope: float = 1 / 6

    def classes(self) -> tuple[str, ...]:
        """The names of its classes: ImageNet's or CIFAR-10's."""
        return tuple(_IMAGENET_CATEGORIES) if self.num_classes == 1000 else CIFAR10


def _rows(*rows: tuple[int, int, int, int, str, int]) -> tuple[BlockRow, ...]:
    return tuple(BlockRow(k, hidden, out, bool(se), act, stride) for k, hidden, out, se, act, stride in rows)


LARGE = _rows(
    (3, 16, 16, 0, "RE", 1),
    (3, 64, 24, 0, "RE", 2),
    (3, 72, 24, 0, "RE", 1),
    (5, 72, 40, 1, "RE", 2),
    (5, 120, 40, 1, "RE", 1),
    (5, 120, 40, 1, "RE", 1),
    (3, 240, 80, 0, "HS", 2),
    (3, 200, 80, 0, "HS", 1),
    (3, 184, 80, 0, "HS", 1),
    (3, 184, 80, 0, "HS", 1),
    (3, 480, 112, 1, "HS", 1),
    (3, 672, 112, 1, "HS", 1),
    (5, 672, 160, 1, "HS", 2),
    (5, 960, 160, 1, "HS", 1),
    (5, 960, 160, 1, "HS", 1),
)
SMALL = _rows(
    (3, 16, 16, 1, "RE", 2),
    (3, 72, 24, 0, "RE", 2),
    (3, 88, 24, 0, "RE", 1),
    (5, 96, 40, 1, "HS", 2),
    (5, 240, 40, 1, "HS", 1),
    (5, 240, 40, 1, "HS", 1),
    (5, 120, 48, 1, "HS", 1),
    (5, 144, 48, 1, "HS", 1),
    (5, 288, 96, 1, "HS", 2),
    (5, 576, 96, 1, "HS", 1),
    (5, 576, 96, 1, "HS", 1),
)
STEM_CHANNELS = 16

_BILINEAR = Preprocessing(256, 224, "bilinear")
_BICUBIC = Preprocessing(256, 224, "bicubic")
_CIFAR = Preprocessing(32, 32, "bilinear", (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255))

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("mobilenet-v3-small-050_8xb128_in1k", SMALL, 0.5, 1024, 1000, 0.2, 1e-5, 0.1, _BICUBIC,
                (57.91, 80.19, 1.59, 0.02), ("mobilenet-v3-small-050_3rdparty_in1k",)),
        Variant("mobilenet-v3-small-075_8xb128_in1k", SMALL, 0.75, 1024, 1000, 0.2, 1e-5, 0.1, _BICUBIC,
                (65.23, 85.44, 2.04, 0.04), ("mobilenet-v3-small-075_3rdparty_in1k",)),
        Variant("mobilenet-v3-small_8xb128_in1k", SMALL, 1.0, 1024, 1000, 0.2, 1e-3, 0.01, _BILINEAR,
                (66.68, 86.74, 2.54, 0.06), ("mobilenet-v3-small_3rdparty_in1k",)),
        Variant("mobilenet-v3-large_8xb128_in1k", LARGE, 1.0, 1280, 1000, 0.2, 1e-3, 0.01, _BILINEAR,
                (73.49, 91.31, 5.48, 0.23), ("mobilenet-v3-large_3rdparty_in1k",)),
        Variant("mobilenet-v3-small_8xb16_cifar10", SMALL, 1.0, 1280, 10, 0.0, 1e-3, 0.01, _CIFAR, None),
    )
}  # fmt: skip


def find_variant(name: str) -> Variant:
    """The variant of a name or an alias; raises ValueError that lists the names."""
    for variant in VARIANTS.values():
        if name in (variant.name, *variant.aliases):
            return variant
    raise ValueError(f"unknown model {name!r}; there are {', '.join(VARIANTS)}")


def variant_of(config_or_name: str | os.PathLike[str], function: str = "variant_of") -> Variant:
    """The variant of a name, of an alias, or of a path whose file name is one; the file itself is not read.

    Args:
        config_or_name: such as ``mobilenet-v3-small-050_8xb128_in1k`` or
            ``configs/mobilenet_v3/mobilenet-v3-small-050_8xb128_in1k.py``.
        function: who asks, for the message of an error.

    Raises:
        TypeError: for what is no name and no path.
        ValueError: for an unknown name; the message lists the names.
    """
    if not isinstance(config_or_name, (str, os.PathLike)):
        raise TypeError(f"{function}: config must be a name or a path, got {type(config_or_name).__name__}")
    return find_variant(PurePosixPath(os.fspath(config_or_name).replace("\\", "/")).name.removesuffix(".py"))


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, never less than 90% of it."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def block_settings(variant: Variant) -> list[InvertedResidualConfig]:
    """torchvision's settings of a variant's blocks.

    The number of hidden channels is scaled from the block's own input ("ratio scaling", as mmpretrain, timm and the
    authors do); torchvision scales it from the table instead, which differs at every width but 1.
    """
    settings = []
    inputs = table_inputs = STEM_CHANNELS  # the stem is not scaled
    for row in variant.blocks:
        hidden = make_divisible(inputs * row.hidden / table_inputs)
        outputs = make_divisible(row.outputs * variant.width)
        settings.append(
            InvertedResidualConfig(
                inputs, row.kernel, hidden, outputs, row.squeeze, row.activation, row.stride, 1, width_mult=1.0
            )
        )
        inputs, table_inputs = outputs, row.outputs
    return settings


def build(variant: Variant, num_classes: int | None = None, dropout: float | None = None) -> MobileNetV3:
    """A fresh network of torchvision's classes, not accelerated, in training mode.

    Args:
        variant: what to build.
        num_classes: outputs of the last layer, else the variant's.
        dropout: probability in the classifier, else the variant's.
    """
    norm = partial(nn.BatchNorm2d, eps=variant.bn_eps, momentum=variant.bn_momentum)
    return MobileNetV3(
        block_settings(variant),
        variant.last_channel,
        num_classes=variant.num_classes if num_classes is None else num_classes,
        norm_layer=norm,
        dropout=variant.dropout if dropout is None else dropout,
    )
