"""Networks of torchvision's classes from rows of the table of variants."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig, MobileNetV3
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

from mnv3_fast.models.families.variant import STEM_CHANNELS, Variant, make_divisible
from mnv3_fast.models.layers import Conv2dSame, DownscaleDropout, Hardsigmoid

ACTIVATIONS = {"RE": nn.ReLU, "HS": nn.Hardswish}


def block_settings(variant: Variant) -> list[InvertedResidualConfig]:
    """torchvision's settings of a variant's blocks, channels as they are.

    "ratio" scales the number of hidden channels from the block's own input (as the authors, timm and mmpretrain do),
    "expansion" from the table (as torchvision and Paddle do); they differ at every width but 1.
    """
    settings = []
    inputs, table_inputs = variant.stem_channels, STEM_CHANNELS
    for row in variant.blocks:
        ratio = variant.scaling == "ratio"
        hidden = make_divisible(inputs * row.hidden / table_inputs if ratio else row.hidden * variant.width)
        outputs = make_divisible(row.outputs * variant.width)
        settings.append(
            InvertedResidualConfig(
                inputs, row.kernel, hidden, outputs, row.squeeze, row.activation, row.stride, row.dilation, width_mult=1
            )
        )
        inputs, table_inputs = outputs, row.outputs
    return settings


def build(variant: Variant, num_classes: int | None = None, dropout: float | None = None) -> MobileNetV3:
    """A fresh network of torchvision's classes, not accelerated, in training mode; names are torchvision's.

    Weights are drawn as torchvision draws them.

    Args:
        variant: what to build.
        num_classes: outputs of the last layer, else the variant's.
        dropout: probability in the classifier, else the variant's.
    """
    settings = block_settings(variant)
    model = MobileNetV3(
        settings,
        variant.last_channel,
        num_classes=variant.num_classes if num_classes is None else num_classes,
        block=partial(_block, variant, settings[0]),
        norm_layer=_norm(variant),
        dropout=variant.dropout if dropout is None else dropout,
    )
    _change_tail(model, variant)
    _change_classifier(model, variant)
    if variant.activation == "RE":
        for sequence, position in ((model.features[0], 2), (model.features[-1], 2), (model.classifier, 1)):
            sequence[position] = nn.ReLU(inplace=True)
    if variant.padding == "same":
        _pad_same(model)
    return model


def new_last_layer(layer: nn.Linear, num_classes: int) -> nn.Linear:
    """A fresh fully connected layer of as many inputs, with torchvision's weights to begin with."""
    fresh = nn.Linear(layer.in_features, num_classes, device=layer.weight.device, dtype=layer.weight.dtype)
    return _initialize(fresh)


def _norm(variant: Variant) -> Callable[..., nn.Module]:
    return partial(nn.BatchNorm2d, eps=variant.bn_eps, momentum=variant.bn_momentum)


def _block(
    variant: Variant, first: InvertedResidualConfig, settings: InvertedResidualConfig, norm: Callable[..., nn.Module]
) -> InvertedResidual:
    """torchvision's block with the family's squeeze-excite, expansion and skip."""
    activation = ACTIVATIONS["HS" if settings.use_hs else "RE"]

    def squeeze_excite(channels: int, _: int) -> SqueezeExcitation:
        inside = make_divisible(channels // 4, variant.squeeze_divisor)
        slope = variant.gate_slope
        gate = nn.Hardsigmoid if slope == 1 / 6 else partial(Hardsigmoid, slope)
        return SqueezeExcitation(
            channels, inside, activation if variant.squeeze_activation == "block" else nn.ReLU, gate
        )

    block = InvertedResidual(settings, norm, squeeze_excite)
    channels = settings.input_channels
    if variant.always_expand and settings.expanded_channels == channels:
        expand = Conv2dNormActivation(channels, channels, 1, norm_layer=norm, activation_layer=activation)
        block.block = nn.Sequential(expand, *block.block)
    if settings is first and not variant.first_skip:
        block.use_res_connect = False
    return block


def _change_tail(model: MobileNetV3, variant: Variant) -> None:
    """Other channels for the last 1x1 convolution, more than one of them."""
    conv = model.features[-1][0]
    inputs, outputs = conv.in_channels, variant.tail_channels or conv.out_channels
    layer = partial(
        Conv2dNormActivation, kernel_size=1, norm_layer=_norm(variant), activation_layer=ACTIVATIONS[variant.activation]
    )
    if outputs != conv.out_channels:
        model.features[-1] = _initialize(layer(inputs, outputs))
    for _ in range(variant.tails - 1):
        model.features.append(_initialize(layer(outputs, outputs)))


def _change_classifier(model: MobileNetV3, variant: Variant) -> None:
    """Another first layer, and Paddle's dropout."""
    linear, inputs = model.classifier[0], model.features[-1].out_channels
    if inputs != linear.in_features or not variant.head_bias:
        model.classifier[0] = _initialize(nn.Linear(inputs, linear.out_features, bias=variant.head_bias))
    if variant.downscale_dropout:
        model.classifier[2] = DownscaleDropout(model.classifier[2].p)


def _pad_same(model: MobileNetV3) -> None:
    """TensorFlow's padding for every convolution of stride 2; at stride 1 it is the symmetric one."""
    for layer in [module for module in model.modules() if isinstance(module, Conv2dNormActivation)]:
        conv = layer[0]
        if conv.stride == (1, 1):
            continue
        same = Conv2dSame(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, groups=conv.groups, bias=False
        )
        same.weight = conv.weight
        layer[0] = same


def _initialize(module: Any) -> Any:
    """The weights of a module as torchvision's constructor draws them."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, 0, 0.01)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module
