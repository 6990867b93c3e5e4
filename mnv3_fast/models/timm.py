"""Reads timm's modules into descriptions, by the names of their classes: timm is not imported."""

from __future__ import annotations

from torch import nn

from mnv3_fast.models.chain import Layer, chain_of, parts_between
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
    read_activation,
    read_gate,
    stock_class,
)


def is_timm(module: nn.Module, name: str) -> bool:
    """Whether a module is timm's class of this name, or ours for it; a subclass of a user's may do anything else."""
    cls = stock_class(type(module))
    return cls.__name__ == name and cls.__module__.startswith("timm.")


def _read_layer(conv: nn.Module, norm: nn.Module) -> ConvLayer:
    """A convolution and its BatchNormAct2d, which holds the activation."""
    if not is_timm(norm, "BatchNormAct2d"):
        raise Unsupported(f"norm {type(norm).__name__} cannot be folded into a convolution")
    if norm.running_mean is None or norm.running_var is None:
        raise Unsupported("BatchNorm without running statistics cannot be folded into a convolution")
    if type(norm.drop) is not nn.Identity:
        raise Unsupported(f"BatchNormAct2d drops with {type(norm.drop).__name__}")
    return ConvLayer(conv, norm, read_activation(norm.act))


def _check_plain(module: nn.Module) -> None:
    if type(getattr(module, "aa", None)) not in (nn.Identity, type(None)):
        raise Unsupported("anti-aliasing between the convolutions has no kernel")
    if getattr(module, "conv_s2d", None) is not None:
        raise Unsupported("space-to-depth in front of a block has no kernel")
    if type(module.drop_path) is not nn.Identity:
        if not is_timm(module.drop_path, "DropPath"):
            raise Unsupported(f"drop_path is a {type(module.drop_path).__name__}, expected timm's DropPath")
        if module.drop_path.training:
            raise Unsupported("drop_path is in training mode")


def _read_squeeze_excite(module: nn.Module) -> SqueezeExciteLayer | None:
    if type(module) is nn.Identity:
        return None
    if not is_timm(module, "SqueezeExcite") or not hasattr(module, "conv_reduce"):
        raise Unsupported(f"{type(module).__name__} in the place of squeeze-excite has no kernel")
    for conv in (module.conv_reduce, module.conv_expand):
        check_conv(conv, "pointwise")
        if conv.bias is None:
            raise Unsupported("squeeze-excite without bias")
    gate, slope = read_gate(module.gate)
    return SqueezeExciteLayer(module.conv_reduce, module.conv_expand, read_activation(module.act1), gate, slope)


def read_block(module: nn.Module) -> BlockDescription | None:
    """InvertedResidual and DepthwiseSeparableConv."""
    if is_timm(module, "InvertedResidual"):
        return inverted_residual_layers(module)
    if is_timm(module, "DepthwiseSeparableConv"):
        return separable_layers(module)
    return None


def inverted_residual_layers(module: nn.Module) -> BlockDescription:
    """conv_pw, bn1, conv_dw, bn2, se, conv_pwl, bn3."""
    expand = _read_layer(module.conv_pw, module.bn1)
    check_conv(expand.conv, "pointwise")
    return _block(module, expand, _read_layer(module.conv_dw, module.bn2), _read_layer(module.conv_pwl, module.bn3))


def separable_layers(module: nn.Module) -> BlockDescription:
    """conv_dw, bn1, se, conv_pw, bn2."""
    return _block(module, None, _read_layer(module.conv_dw, module.bn1), _read_layer(module.conv_pw, module.bn2))


def _block(module: nn.Module, expand: ConvLayer | None, depthwise: ConvLayer, project: ConvLayer) -> BlockDescription:
    _check_plain(module)
    check_conv(depthwise.conv, "depthwise")
    check_conv(project.conv, "pointwise")
    return BlockDescription(
        expand, depthwise, _read_squeeze_excite(module.se), project, check_residual(depthwise, bool(module.has_skip))
    )


def read_conv(module: nn.Module) -> ConvLayer | None:
    """ConvBnAct without a skip connection."""
    return conv_layer(module) if is_timm(module, "ConvBnAct") else None


def conv_layer(module: nn.Module) -> ConvLayer:
    """conv, bn1."""
    _check_plain(module)
    if module.has_skip:
        raise Unsupported("ConvBnAct with a skip connection has no kernel")
    layer = _read_layer(module.conv, module.bn1)
    if not is_conv(layer.conv):
        raise Unsupported(f"ConvBnAct has a {type(layer.conv).__name__}")
    return layer


def stem_layer(model: nn.Module) -> ConvLayer:
    """conv_stem and bn1, of MobileNetV3Features also act1: no module of their own."""
    if is_timm(model, "MobileNetV3Features"):
        check_norm(model.bn1)
        stem = ConvLayer(model.conv_stem, model.bn1, read_activation(model.act1))
    else:
        stem = _read_layer(model.conv_stem, model.bn1)
    check_conv(stem.conv, "stem")
    return stem


def stem_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that :func:`stem_layer` describes."""
    names = ("conv_stem", "bn1", "act1") if is_timm(model, "MobileNetV3Features") else ("conv_stem", "bn1")
    return [inside for name in names for inside in getattr(model, name).modules()]


def _is_linear(module: nn.Module) -> bool:
    """torch's, or timm's, which computes the same."""
    return (type(module) is nn.Linear or is_timm(module, "Linear")) and is_dense_linear(module)


def _is_average(pool: nn.Module) -> bool:
    """SelectAdaptivePool2d that takes the mean over the map, as "avg" or "fast"."""
    if not is_timm(pool, "SelectAdaptivePool2d") or type(pool.flatten) is not nn.Identity:
        return False
    inner = pool.pool
    if is_timm(inner, "FastAdaptiveAvgPool"):
        return inner.flatten is False and inner.dim == (2, 3)
    return is_global_average(inner)


HEAD = ("global_pool", "conv_head", "norm_head", "act2", "flatten", "classifier")
"""What runs after the stages, in this order; a dropout before the classifier is for training."""


def _head_reason(model: nn.Module) -> str | None:
    """Why pool and conv_head cannot join a plan; None if they can."""
    if not _is_average(model.global_pool):
        return f"global_pool {model.global_pool} has no kernel (average pooling to one pixel has)"
    if type(model.flatten) is not nn.Flatten or (model.flatten.start_dim, model.flatten.end_dim) != (1, -1):
        return f"flatten is {model.flatten}, expected Flatten(1)"
    if type(model.norm_head) is not nn.Identity:
        return f"norm_head {type(model.norm_head).__name__} has no kernel"
    try:
        check_conv(model.conv_head, "pointwise")
        read_activation(model.act2)
    except Unsupported as unsupported:
        return str(unsupported)
    return None


def _rest_of_head(model: nn.Module) -> tuple[str, ...]:
    """The names of the head's modules that stay torch's behind a plan."""
    if _head_reason(model) is not None:
        return HEAD
    joins = _is_linear(model.classifier) or type(model.classifier) is nn.Identity
    return () if joins else ("classifier",)


def net_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that :func:`read_net` describes, with the containers that hold them."""
    outside = _rest_of_head(model)
    modules: list[nn.Module] = []
    for name, child in model.named_children():
        if name not in outside:
            modules += list(child.modules())
    return modules


def _read_stages(model: nn.Module) -> list[list[Layer]]:
    """The layers of each stage; a deeper network has several 1x1 convolutions in the last one."""
    if stock_class(type(model.blocks)) is not nn.Sequential:
        raise Unsupported(f"its stages are a {type(model.blocks).__name__}, not a Sequential")
    stages: list[list[Layer]] = []
    for stage in model.blocks:
        if type(stage) is not nn.Sequential:
            raise Unsupported("something else than a Sequential stands among the stages")
        layers: list[Layer] = []
        for child in stage:
            layer = read_block(child) or read_conv(child)
            if layer is None:
                raise Unsupported(f"{type(child).__name__} stands among the blocks")
            layers.append(layer)
        stages.append(layers)
    return stages


def read_net(model: nn.Module) -> NetDescription | None:
    """MobileNetV3: conv_stem, bn1, blocks, and global_pool, conv_head, act2, classifier as far as they have kernels."""
    if not is_timm(model, "MobileNetV3"):
        return None
    layers: list[Layer] = [stem_layer(model)]
    for stage in _read_stages(model):
        layers += stage
    body = chain_of(layers)
    rest = tuple(getattr(model, name) for name in _rest_of_head(model))
    head: list[LinearLayer] = []
    pooled = _head_reason(model) is None
    if pooled:
        head.append(LinearLayer(model.conv_head, read_activation(model.act2)))
        if _is_linear(model.classifier):
            head.append(LinearLayer(model.classifier, "none"))
    return NetDescription(body.stem, body.blocks, body.tail, pooled, tuple(head), rest, headed=True)


def read_pyramid(model: nn.Module) -> PyramidDescription | None:
    """MobileNetV3Features: the outputs of the stem (0) and of stages (from 1 on)."""
    if not is_timm(model, "MobileNetV3Features"):
        return None
    if model.feature_hooks is not None:
        raise Unsupported("its maps are taken by hooks inside of blocks (feature_location)")
    stages: list[list[Layer]] = [[stem_layer(model)], *_read_stages(model)]
    ends = [sum(len(stage) for stage in stages[: i + 1]) - 1 for i in sorted(model._stage_out_idx)]
    layers = [layer for stage in stages for layer in stage]
    return PyramidDescription(parts_between(layers, ends), attributes={"feature_info": model.feature_info})
