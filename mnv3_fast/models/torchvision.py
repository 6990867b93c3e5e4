"""Reads torchvision's modules into descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet
from torchvision.models.mobilenetv3 import InvertedResidual, MobileNetV3
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

from mnv3_fast.models.checks import (
    Unsupported,
    check_conv,
    check_norm,
    check_residual,
    is_conv,
    is_dense_linear,
    is_global_average,
)
from mnv3_fast.models.description import (
    BlockDescription,
    ConvLayer,
    LinearLayer,
    NetDescription,
    PyramidDescription,
    SqueezeExciteLayer,
    kind_of_conv,
    read_activation,
    read_gate,
    stock_class,
)
from mnv3_fast.models.layers import DownscaleDropout


def read_conv(module: nn.Module) -> ConvLayer | None:
    """Conv2dNormActivation; a subclass of a user's may do anything else, so it is none."""
    return conv_layer(module) if stock_class(type(module)) is Conv2dNormActivation else None


def conv_layer(module: Conv2dNormActivation) -> ConvLayer:
    """Convolution, norm (or none), activation (or none)."""
    if None in module._modules.values():
        raise Unsupported("Conv2dNormActivation has a part that is None")
    conv, rest = module[0], list(module)[1:]
    if len(rest) > 2:
        raise Unsupported(f"Conv2dNormActivation has {len(module)} parts, expected convolution, norm, activation")
    norm = rest.pop(0) if len(rest) == 2 or (rest and hasattr(rest[0], "running_mean")) else None
    activation = rest[0] if rest else None
    norm = None if type(norm) is nn.Identity else norm  # a folded norm
    if not is_conv(conv):
        raise Unsupported(f"Conv2dNormActivation starts with a {type(conv).__name__}")
    check_norm(norm)
    return ConvLayer(conv, norm, read_activation(activation))


def read_squeeze_excite(module: nn.Module) -> SqueezeExciteLayer | None:
    """SqueezeExcitation."""
    return squeeze_excite_layer(module) if stock_class(type(module)) is SqueezeExcitation else None


def squeeze_excite_layer(module: SqueezeExcitation) -> SqueezeExciteLayer:
    """Pool, fc1, activation, fc2, gate."""
    if not is_global_average(module.avgpool):
        raise Unsupported("squeeze-excite pools by something else than AdaptiveAvgPool2d(1)")
    for conv in (module.fc1, module.fc2):
        check_conv(conv, "pointwise")
        if conv.bias is None:
            raise Unsupported("squeeze-excite without bias")
    gate, slope = read_gate(module.scale_activation)
    return SqueezeExciteLayer(module.fc1, module.fc2, read_activation(module.activation), gate, slope)


def read_block(module: nn.Module) -> BlockDescription | None:
    """InvertedResidual."""
    return block_layers(module) if stock_class(type(module)) is InvertedResidual else None


def block_layers(module: InvertedResidual) -> BlockDescription:
    """``block`` is [expand?, depthwise, squeeze-excite?, project]."""
    if stock_class(type(module.block)) is not nn.Sequential:
        raise Unsupported(f"InvertedResidual.block is a {type(module.block).__name__}, not an nn.Sequential")
    return block_of_parts(module.block, bool(module.use_res_connect))


def block_of_parts(parts: nn.Sequential, residual: bool) -> BlockDescription:
    """[expand?, depthwise, squeeze-excite?, project]; the last may be a plain 1x1 convolution."""
    convs: list[ConvLayer] = []
    squeeze_excite = None
    last = len(parts) - 1
    for position, child in enumerate(parts):
        if position == last - 1:
            squeeze_excite = read_squeeze_excite(child)
            if squeeze_excite is not None:
                continue
        layer = ConvLayer(child, None, "none") if type(child) is nn.Conv2d and position == last else read_conv(child)
        if layer is None:
            raise Unsupported(f"InvertedResidual has an unexpected {type(child).__name__} at position {position}")
        convs.append(layer)
    if len(convs) not in (2, 3):
        raise Unsupported(f"InvertedResidual has {len(convs)} convolutions, expected 2 or 3")
    expand = convs[0] if len(convs) == 3 else None
    if expand is not None:
        check_conv(expand.conv, "pointwise")
    check_conv(convs[-2].conv, "depthwise")
    check_conv(convs[-1].conv, "pointwise")
    return BlockDescription(expand, convs[-2], squeeze_excite, convs[-1], check_residual(convs[-2], residual))


def read_head(classifier: nn.Module) -> tuple[tuple[LinearLayer, ...], tuple[nn.Module, ...]]:
    """The fully connected layers at the front of a classifier that join a plan, and the modules after them."""
    modules = list(classifier) if type(classifier) is nn.Sequential else [classifier]
    layers: list[LinearLayer] = []
    taken, scale = 0, 1.0  # of the next layer's input
    for i, module in enumerate(modules):
        plain = not has_hooks(module)
        if type(module) is nn.Linear and plain and is_dense_linear(module):
            layers.append(LinearLayer(module, "none", scale))
            scale = 1.0
        elif type(module) is DownscaleDropout and plain:
            scale *= 1 - module.p
        elif type(module) in (nn.Hardswish, nn.ReLU) and plain and layers and layers[-1].activation == "none":
            if scale != 1:
                break
            layers[-1] = replace(layers[-1], activation=read_activation(module))
        elif type(module) not in (nn.Dropout, nn.Identity) or not plain:
            break
        taken = i + 1 if scale == 1 else taken
    return tuple(layers), tuple(modules[taken:])


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module would run more than its forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def read_features(features: nn.Module) -> NetDescription | None:
    """A Sequential [stem?, blocks..., tail?]: ``MobileNetV3.features`` or a slice of it."""
    if stock_class(type(features)) is not nn.Sequential:
        return None
    prediction = _read_prediction(features)
    if prediction is not None:
        return prediction
    found = read_children(list(features))
    return found if found is not None and found.blocks else None


def read_children(children: Sequence[nn.Module]) -> NetDescription | None:
    """[stem?, blocks..., tail?], as they follow each other; None if one of them is something else."""
    stem = tail = None
    blocks: list[BlockDescription | ConvLayer] = []
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
        elif kind == "pointwise" and blocks:
            blocks.append(layer)  # a deeper network has several 1x1 convolutions at its end
        else:
            raise Unsupported(f"a {kind} convolution stands at position {i} of the features")
    return NetDescription(stem, tuple(blocks), tail, pooled=False) if stem or blocks or tail else None


def read_net(model: nn.Module) -> NetDescription | None:
    """MobileNetV3, or its ``features``."""
    if stock_class(type(model)) is not MobileNetV3:
        return read_features(model)
    body = read_features(model.features)
    if body is None or body.stem is None:
        raise Unsupported("MobileNetV3.features is no chain of stem, blocks and tail")
    if not is_global_average(model.avgpool):
        raise Unsupported(f"MobileNetV3.avgpool is {model.avgpool}, expected AdaptiveAvgPool2d(1)")
    head, rest = read_head(_classifier_of(model))
    return NetDescription(body.stem, body.blocks, body.tail, True, head, rest)


def read_pyramid(model: nn.Module) -> PyramidDescription | None:
    """IntermediateLayerGetter (segmenters, Faster R-CNN) and SSDLite's feature extractor."""
    if stock_class(type(model)) is IntermediateLayerGetter:
        return _read_getter(model)
    return _read_ssdlite(model) if stock_class(type(model)) is SSDLiteFeatureExtractorMobileNet else None


def _read_getter(getter: IntermediateLayerGetter) -> PyramidDescription:
    parts: list[NetDescription] = []
    names: list[str] = []
    children: list[nn.Module] = []
    for name, child in getter.items():
        children.append(child)
        if name in getter.return_layers:
            parts.append(_read_part(children))
            names.append(getter.return_layers[name])
            children = []
    if not parts or children:
        raise Unsupported("IntermediateLayerGetter has layers behind its last output")
    return PyramidDescription(tuple(parts), names=tuple(names))


def _read_ssdlite(extractor: SSDLiteFeatureExtractorMobileNet) -> PyramidDescription:
    """Its first output lies inside of a block, between expansion and depthwise convolution."""
    if len(extractor.features) != 2 or not isinstance(extractor.features[1][0], nn.Sequential):
        raise Unsupported("SSDLite's features are not two parts that divide a block")
    front, (divided, *children) = extractor.features[0], extractor.features[1]
    back = _read_part(children)
    back = replace(back, blocks=(block_of_parts(divided, residual=False), *back.blocks))
    names = tuple(str(i) for i in range(2 + len(extractor.extra)))
    extra = tuple(_read_separable(block) for block in extractor.extra)
    return PyramidDescription((_read_part(list(front)), back, *extra), names=names)


def _read_separable(block: nn.Module) -> NetDescription:
    """SSDLite's blocks behind the network: 1x1 convolution, depthwise convolution, 1x1 convolution."""
    if stock_class(type(block)) is not nn.Sequential:
        raise Unsupported(f"SSDLite has a {type(block).__name__} behind its features, not an nn.Sequential")
    return NetDescription(None, (block_of_parts(block, residual=False),), None, pooled=False)


def _read_prediction(block: nn.Sequential) -> NetDescription | None:
    """SSDLite's head on one map: depthwise convolution, plain 1x1 convolution."""
    if len(block) != 2 or type(block[1]) is not nn.Conv2d or stock_class(type(block[0])) is not Conv2dNormActivation:
        return None
    return NetDescription(None, (block_of_parts(block, residual=False),), None, pooled=False)


def _read_part(children: Sequence[nn.Module]) -> NetDescription:
    part = read_children(children)
    if part is None:
        names = ", ".join(type(child).__name__ for child in children)
        raise Unsupported(f"{names} is no known chain of a MobileNetV3's layers")
    return part


def _classifier_of(model: nn.Module) -> nn.Module:
    if not isinstance(model.classifier, nn.Module):
        raise Unsupported(f"MobileNetV3.classifier is a {type(model.classifier).__name__}, not a module")
    return model.classifier


def read_end(model: nn.Module) -> NetDescription:
    """What comes after the blocks of a MobileNetV3: the last 1x1 convolution, the pool and the classifier."""
    if stock_class(type(model.features)) is not nn.Sequential or len(model.features) == 0:
        raise Unsupported(f"MobileNetV3.features is a {type(model.features).__name__}, not an nn.Sequential")
    tail = read_conv(model.features[-1])
    if tail is None or kind_of_conv(tail) != "pointwise":
        raise Unsupported("MobileNetV3.features does not end with a 1x1 convolution block")
    if not is_global_average(model.avgpool):
        raise Unsupported(f"MobileNetV3.avgpool is {model.avgpool}, expected AdaptiveAvgPool2d(1)")
    head, rest = read_head(_classifier_of(model))
    return NetDescription(None, (), tail, True, head, rest)


def end_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that :func:`read_end` describes, with the containers that hold them."""
    modules = list(model.classifier) if type(model.classifier) is nn.Sequential else [model.classifier]
    _, rest = read_head(model.classifier)
    taken = [inside for module in modules[: len(modules) - len(rest)] for inside in module.modules()]
    return [model.features, *model.features[-1].modules(), model.avgpool, model.classifier, *taken]


def net_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that :func:`read_net` describes, with the containers that hold them."""
    return list(dict.fromkeys([*model.features.modules(), *end_modules(model)]))
