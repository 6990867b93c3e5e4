"""What a row of the table of variants holds, and the blocks of Large and Small (Howard et al. 2019, tables 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torchvision.models._meta import _IMAGENET_CATEGORIES

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes a network's input: short side to ``resize`` pixels, central ``crop``, (x - mean) / std.

    ``mean`` and ``std`` are those of RGB values from 0 to 255.
    """

    resize: int
    crop: int
    interpolation: str
    mean: Triple = (123.675, 116.28, 103.53)
    std: Triple = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Weights:
    """A file of trained weights and what was published of it.

    ``top1`` and ``top5`` are percent on ImageNet-1k's validation images, at the size of ``preprocessing``; ``test`` are
    another size that was published and the top-1 and top-5 at it. ``alias`` is a name for the variant with this file.
    """

    tag: str
    url: str
    top1: float | None
    top5: float | None
    preprocessing: Preprocessing
    num_classes: int = 1000
    test: tuple[Preprocessing, float, float] | None = None
    alias: str | None = None


@dataclass(frozen=True)
class BlockRow:
    """A block at width 1: kernel size, hidden and output channels, squeeze-excite, "RE" or "HS", stride, dilation."""

    kernel: int
    hidden: int
    outputs: int
    squeeze: bool
    activation: str
    stride: int
    dilation: int = 1


@dataclass(frozen=True)
class Variant:
    """One network: a row of the table.

    Attributes:
        name, aliases: what it is called.
        family: "torchvision", "timm", "mmpretrain", "keras" or "paddle".
        blocks: its blocks at width 1.
        width: what the channels of the blocks are multiplied by.
        scaling: how hidden channels follow the width: "ratio", by the ratio of hidden to input channels in the table,
            or "expansion", the table's hidden channels times the width.
        stem_channels: outputs of the first convolution, as they are.
        tail_channels: outputs of the last 1x1 convolution, as they are; None: six times its inputs.
        tails: how many last 1x1 convolutions there are.
        last_channel: outputs of the classifier's first layer, as they are.
        activation: "HS" or "RE", of the first and last convolution and the classifier.
        squeeze_divisor: what squeeze-excite's hidden channels, a quarter of the block's, are rounded to.
        squeeze_activation: "RE", or "block" for the block's own.
        gate_slope: that of squeeze-excite's hard sigmoid, clip(slope * x + 1/2, 0, 1).
        always_expand: blocks that have as many hidden as input channels expand nevertheless.
        first_skip: the first block adds its input, where it has as many channels and pixels as its output.
        head_bias: the classifier's first layer has a bias.
        padding: "symmetric", or "same" as TensorFlow pads.
        num_classes, dropout: of the classifier.
        downscale_dropout: dropout leaves values as they are in training and shrinks them in inference (Paddle).
        bn_eps, bn_momentum: of every BatchNorm, the momentum as torch means it.
        preprocessing: how its images are prepared, unless weights say otherwise.
        weights: the files that there are.
        default_weights: the tag of the file that is meant by "DEFAULT".
        published: parameters and FLOPs as its authors state them; what they count differs.
    """

    name: str
    family: str
    blocks: tuple[BlockRow, ...]
    width: float
    scaling: str
    stem_channels: int
    last_channel: int
    dropout: float
    bn_eps: float
    bn_momentum: float
    preprocessing: Preprocessing
    weights: tuple[Weights, ...] = ()
    default_weights: str | None = None
    published: tuple[str, str] | None = None
    aliases: tuple[str, ...] = ()
    tail_channels: int | None = None
    tails: int = 1
    activation: str = "HS"
    squeeze_divisor: int = 8
    squeeze_activation: str = "RE"
    gate_slope: float = 1 / 6
    always_expand: bool = False
    first_skip: bool = True
    head_bias: bool = True
    padding: str = "symmetric"
    num_classes: int = 1000
    downscale_dropout: bool = False

    def classes(self) -> tuple[str, ...]:
        """The names of its classes: ImageNet's or CIFAR-10's, else numbers."""
        if self.num_classes == 1000:
            return tuple(_IMAGENET_CATEGORIES)
        return CIFAR10 if self.num_classes == 10 else tuple(f"class {i}" for i in range(self.num_classes))

    def weights_of(self, tag: str) -> Weights:
        """The file of a tag, or of "DEFAULT"; raises ValueError that lists the tags."""
        wanted = self.default_weights if tag == "DEFAULT" else tag
        for weights in self.weights:
            if weights.tag == wanted:
                return weights
        tags = ", ".join(["DEFAULT", *(weights.tag for weights in self.weights)]) if self.weights else "none"
        raise ValueError(f"weights {tag!r} do not exist for {self.name}; there are {tags}")

    def with_weights(self, tag: str) -> Variant:
        """The variant as it is with the file of a tag: ``name.tag``, its preprocessing and number of classes."""
        weights = self.weights_of(tag)
        same = (self.preprocessing, self.num_classes, self.default_weights)
        if (weights.preprocessing, weights.num_classes, weights.tag) == same:
            return self
        return replace(
            self, name=f"{self.name}.{weights.tag}", aliases=(), default_weights=weights.tag,
            preprocessing=weights.preprocessing, num_classes=weights.num_classes,
        )  # fmt: skip


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
STEM_CHANNELS = 16  # of the table

BILINEAR = Preprocessing(256, 224, "bilinear")
BICUBIC = Preprocessing(256, 224, "bicubic")


def minimalistic(blocks: tuple[BlockRow, ...]) -> tuple[BlockRow, ...]:
    """The same blocks without squeeze-excite, hard swish and 5x5 kernels."""
    return tuple(replace(row, kernel=3, squeeze=False, activation="RE") for row in blocks)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, never less than 90% of it."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
