"""Reads torchvision's modules into descriptions."""

from __future__ import annotations

from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidual, MobileNetV3
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

from mnv3_fast.models.description import (
    BlockDescription,
    ConvLayer,
    LinearLayer,
    NetDescription,
    SqueezeExciteLayer,
    Unsupported,
    check_conv,
    check_norm,
    kind_of_conv,
    read_activation,
    read_gate,
)


def read_conv(module: nn.Module) -> ConvLayer | None:
    """Conv2dNormActivation: convolution, norm (or none), activation (or none)."""
    if not isinstance(module, Conv2dNormActivation):
        return None
    conv, rest = module[0], list(module)[1:]
    if len(rest) > 2:
        raise Unsupported(f"Conv2dNormActivation has {len(module)} parts, expected convolution, norm, activation")
    norm = rest.pop(0) if len(rest) == 2 or (rest and hasattr(rest[0], "running_mean")) else None
    activation = rest[0] if rest else None
    norm = None if type(norm) is nn.Identity else norm  # a folded norm
    if type(conv) is not nn.Conv2d:
        raise Unsupported(f"Conv2dNormActivation starts with a {type(conv).__name__}")
    check_norm(norm)
    return ConvLayer(conv, norm, read_activation(activation))


def read_squeeze_excite(module: nn.Module) -> SqueezeExciteLayer | None:
    """SqueezeExcitation."""
    if not isinstance(module, SqueezeExcitation):
        return None
    for conv in (module.fc1, module.fc2):
        check_conv(conv, "pointwise")
        if conv.bias is None:
            raise Unsupported("squeeze-excite without bias")
    gate, slope = read_gate(module.scale_activation)
    return SqueezeExciteLayer(module.fc1, module.fc2, read_activation(module.activation), gate, slope)


def read_block(module: nn.Module) -> BlockDescription | None:
    """InvertedResidual: ``block`` is [expand?, depthwise, squeeze-excite?, project]."""
    if not isinstance(module, InvertedResidual):
        return None
    convs: list[ConvLayer] = []
    squeeze_excite = None
    for child in module.block:
        if isinstance(child, SqueezeExcitation):
            squeeze_excite = read_squeeze_excite(child)
            continue
        layer = read_conv(child)
        if layer is None or (squeeze_excite is not None and len(convs) != len(module.block) - 2):
            raise Unsupported(f"InvertedResidual has an unexpected {type(child).__name__}")
        convs.append(layer)
    if len(convs) not in (2, 3):
        raise Unsupported(f"InvertedResidual has {len(convs)} convolutions, expected 2 or 3")
    expand = convs[0] if len(convs) == 3 else None
    if expand is not None:
        check_conv(expand.conv, "pointwise")
    check_conv(convs[-2].conv, "depthwise")
    check_conv(convs[-1].conv, "pointwise")
    return BlockDescription(expand, convs[-2], squeeze_excite, convs[-1], bool(module.use_res_connect))


def read_head(classifier: nn.Module) -> tuple[tuple[LinearLayer, ...], tuple[nn.Module, ...]]:
    """The fully connected layers at the front of a classifier that join a plan, and the modules after them."""
    modules = list(classifier) if type(classifier) is nn.Sequential else [classifier]
    layers: list[LinearLayer] = []
    taken = 0
    for i, module in enumerate(modules):
        if type(module) is nn.Linear and not has_hooks(module):
            layers.append(LinearLayer(module, "none"))
        elif (
            type(module) in (nn.Hardswish, nn.ReLU)
            and layers
            and layers[-1].activation == "none"
            and not has_hooks(module)
        ):
            layers[-1] = LinearLayer(layers[-1].linear, read_activation(module))
        elif not isinstance(module, (nn.Dropout, nn.Identity)):
            break
        taken = i + 1
    return tuple(layers), tuple(modules[taken:])


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module would run more than its forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def read_features(features: nn.Module) -> NetDescription | None:
    """A Sequential [stem?, blocks..., tail?]: ``MobileNetV3.features`` or a slice of it."""
    if not isinstance(features, nn.Sequential) or isinstance(features, Conv2dNormActivation):
        return None
    stem = tail = None
    blocks: list[BlockDescription] = []
    children = list(features)
    for i, child in enumerate(children):
        block = read_block(child)
        if block is not None:
            blocks.append(block)
            continue
        layer = read_conv(child)
        if layer is None:
            return None
        kind = kind_of_conv(layer)
        if kind == "stem" and i == 0:
            stem = layer
        elif kind == "pointwise" and i == len(children) - 1:
            tail = layer
        else:
            raise Unsupported(f"a {kind} convolution stands at position {i} of the features")
    return NetDescription(stem, tuple(blocks), tail, pooled=False) if blocks else None


def read_net(model: nn.Module) -> NetDescription | None:
    """MobileNetV3, or its ``features``."""
    if not isinstance(model, MobileNetV3):
        return read_features(model)
    body = read_features(model.features)
    if body is None or body.stem is None:
        raise Unsupported("MobileNetV3.features is no chain of stem, blocks and tail")
    pool = model.avgpool
    if type(pool) is not nn.AdaptiveAvgPool2d or pool.output_size not in (1, (1, 1)):
        raise Unsupported(f"MobileNetV3.avgpool is {pool}, expected AdaptiveAvgPool2d(1)")
    head, rest = read_head(model.classifier)
    return NetDescription(body.stem, body.blocks, body.tail, True, head, rest)
