"""Reads modules of mmpretrain (and of mmcls before it) and of mmcv into descriptions, by the names of their classes.

Neither is imported. Sources: mmpretrain/models/backbones/mobilenet_v3.py, models/utils/inverted_residual.py,
se_layer.py, models/heads/stacked_head.py, models/necks/gap.py, models/classifiers/image.py (main, and branches
mmcls-1.x and mmcls-0.x, whose modules are the same); mmcv/cnn/bricks/conv_module.py, hsigmoid.py, hswish.py, drop.py.
"""

from __future__ import annotations

from torch import nn

from mnv3_fast.models.chain import Layer, chain_of, parts_between
from mnv3_fast.models.checks import (
    Unsupported,
    check_conv,
    check_norm,
    check_residual,
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

LIBRARIES = ("mmpretrain.", "mmcls.")
PLACES = {
    "MobileNetV3": ".backbones.mobilenet_v3",
    "InvertedResidual": ".utils.inverted_residual",
    "SELayer": ".utils.se_layer",
    "GlobalAveragePooling": ".necks.gap",
    "StackedLinearClsHead": ".heads.stacked_head",
    "LinearBlock": ".heads.stacked_head",
    "ImageClassifier": ".classifiers.image",
}
"""Where mmpretrain and mmcls define a class: there are others of the same name."""


def is_theirs(cls: type, name: str) -> bool:
    """Whether a class is the one of mmpretrain's (or mmcls') of this name; a subclass of a user's is none."""
    module = cls.__module__
    return cls.__name__ == name and module.startswith(LIBRARIES) and module.endswith(PLACES[name])


def is_mmcvs(cls: type, name: str) -> bool:
    """Whether a class is mmcv's of this name."""
    return cls.__name__ == name and cls.__module__.startswith("mmcv.")


def _is(module: nn.Module, name: str) -> bool:
    return is_theirs(stock_class(type(module)), name)


def _read_activation(module: nn.Module | None) -> str:
    """torch's activations, and mmcv's hard-swish of before torch had one."""
    if module is not None and is_mmcvs(type(module), "HSwish") and read_activation(module.act) == "relu6":
        return "hardswish"
    return read_activation(module)


def _read_gate(module: nn.Module | None) -> tuple[str, float]:
    """torch's gates, and mmcv's HSigmoid: clip((x + bias) / divisor, min_value, max_value)."""
    if module is None:
        raise Unsupported("squeeze-excite without a gate has no kernel")
    if not is_mmcvs(type(module), "HSigmoid"):
        return read_gate(module)
    values = (module.bias, module.divisor, module.min_value, module.max_value)
    if not module.divisor > 0 or 2 * module.bias != module.divisor or values[2:] != (0, 1):
        raise Unsupported(
            "HSigmoid of bias {}, divisor {}, from {} to {} has no kernel (clip(x * slope + 1/2, 0, 1) has)".format(
                *values
            )
        )
    return "hardsigmoid", 1 / module.divisor


def _conv_parts(module: nn.Module) -> tuple[nn.Conv2d, nn.Module | None, nn.Module | None]:
    """Convolution, norm and activation of a ConvModule that runs them in this order."""
    if not is_mmcvs(stock_class(type(module)), "ConvModule"):
        raise Unsupported(f"{type(module).__name__} stands in the place of a ConvModule")
    if module.order != ("conv", "norm", "act"):
        raise Unsupported(f"ConvModule with order {module.order} has no kernel")
    if module.with_explicit_padding:
        raise Unsupported("ConvModule with a padding layer has no kernel")
    if getattr(module, "efficient_conv_bn_eval_forward", None) is not None:
        raise Unsupported("ConvModule with efficient_conv_bn_eval is left to mmcv")
    if type(module.conv) is not nn.Conv2d:
        kind = type(module.conv)
        raise Unsupported(f"ConvModule has a {kind.__module__}.{kind.__name__}, not an nn.Conv2d")
    norm = getattr(module, module.norm_name) if module.with_norm else None
    norm = None if type(norm) is nn.Identity else norm  # a folded norm
    check_norm(norm)
    return module.conv, norm, module.activate if module.with_activation else None


def conv_layer(module: nn.Module) -> ConvLayer:
    """conv, norm (by its name), activate."""
    conv, norm, activation = _conv_parts(module)
    return ConvLayer(conv, norm, _read_activation(activation))


def squeeze_excite_layer(module: nn.Module) -> SqueezeExciteLayer:
    """global_avgpool, conv1, conv2: ConvModules without norm; the gate is the second one's activation."""
    if not _is(module, "SELayer"):
        raise Unsupported(f"{type(module).__name__} in the place of squeeze-excite has no kernel")
    if module.return_weight:
        raise Unsupported("squeeze-excite that returns its gate has no kernel")
    if not is_global_average(module.global_avgpool):
        raise Unsupported("squeeze-excite pools by something else than AdaptiveAvgPool2d(1)")
    fc1, norm1, activation = _conv_parts(module.conv1)
    fc2, norm2, gate = _conv_parts(module.conv2)
    for conv, norm in ((fc1, norm1), (fc2, norm2)):
        check_conv(conv, "pointwise")
        if norm is not None:
            raise Unsupported("squeeze-excite with a norm has no kernel")
        if conv.bias is None:
            raise Unsupported("squeeze-excite without bias")
    return SqueezeExciteLayer(fc1, fc2, _read_activation(activation), *_read_gate(gate))


def block_layers(module: nn.Module) -> BlockDescription:
    """expand_conv, depthwise_conv, se, linear_conv."""
    expand = conv_layer(module.expand_conv) if module.with_expand_conv else None
    if expand is not None:
        check_conv(expand.conv, "pointwise")
    depthwise, project = conv_layer(module.depthwise_conv), conv_layer(module.linear_conv)
    check_conv(depthwise.conv, "depthwise")
    check_conv(project.conv, "pointwise")
    if type(module.drop_path) is not nn.Identity:
        if not is_mmcvs(type(module.drop_path), "DropPath"):
            raise Unsupported(f"drop_path is a {type(module.drop_path).__name__}, expected mmcv's DropPath")
        if module.drop_path.training:
            raise Unsupported("drop_path is in training mode")
    squeeze_excite = squeeze_excite_layer(module.se) if module.with_se else None
    residual = check_residual(depthwise, bool(module.with_res_shortcut))
    return BlockDescription(expand, depthwise, squeeze_excite, project, residual)


def read_block(module: nn.Module) -> BlockDescription | None:
    """InvertedResidual."""
    return block_layers(module) if _is(module, "InvertedResidual") else None


def backbone_children(backbone: nn.Module) -> list[nn.Module]:
    """The layers in the order in which they run."""
    return [getattr(backbone, name) for name in backbone.layers]


def _read_layers(backbone: nn.Module) -> list[Layer]:
    layers: list[Layer] = []
    for child in backbone_children(backbone):
        layers.append(read_block(child) or conv_layer(child))
    return layers


def gives_last_map(backbone: nn.Module) -> bool:
    """Whether a backbone's only output is that of its last layer."""
    return tuple(backbone.out_indices) == (len(backbone.layers) - 1,)


def read_body(backbone: nn.Module) -> NetDescription:
    """A backbone whose only output is that of its last layer; raises Unsupported for another."""
    if not gives_last_map(backbone):
        outputs = ", ".join(str(index) for index in backbone.out_indices)
        raise Unsupported(f"its outputs are those of layers {outputs}, not of the last one alone")
    return chain_of(_read_layers(backbone))


def read_pyramid(model: nn.Module) -> PyramidDescription | None:
    """MobileNetV3, a backbone: a tuple of the outputs of the layers in out_indices."""
    if not _is(model, "MobileNetV3"):
        return None
    layers = _read_layers(model)
    ends = [i for i in range(len(layers)) if i in model.out_indices]
    if not ends:
        raise Unsupported("it has no output")
    return PyramidDescription(parts_between(layers, ends), container=tuple)


def is_classifier(model: nn.Module) -> bool:
    """ImageClassifier of mmpretrain or mmcls 1.x, which is called with a mode; that of mmcls 0.x is not."""
    return _is(model, "ImageClassifier") and hasattr(model, "predict")


def read_net(model: nn.Module) -> NetDescription | None:
    """ImageClassifier of a MobileNetV3, GlobalAveragePooling and a StackedLinearClsHead."""
    if not is_classifier(model):
        return None
    if not _is(model.backbone, "MobileNetV3"):
        raise Unsupported(f"its backbone is a {type(model.backbone).__name__}, not MobileNetV3")
    body = read_body(model.backbone)
    if model.neck is None or not _is(model.neck, "GlobalAveragePooling") or not is_global_average(model.neck.gap):
        raise Unsupported(f"its neck is a {type(model.neck).__name__}, not GlobalAveragePooling of maps")
    head = read_head(model.head)
    return NetDescription(body.stem, body.blocks, body.tail, True, head, headed=True)


def read_head(head: nn.Module | None) -> tuple[LinearLayer, ...]:
    """StackedLinearClsHead: LinearBlocks of fc, activation, and a dropout for training."""
    if head is None or not _is(head, "StackedLinearClsHead"):
        raise Unsupported(f"its head is a {type(head).__name__}, not a StackedLinearClsHead")
    layers: list[LinearLayer] = []
    for block in head.layers:
        if not _is(block, "LinearBlock") or type(block.fc) is not nn.Linear or not is_dense_linear(block.fc):
            raise Unsupported(f"{type(block).__name__} in its head has no kernel")
        if block.norm is not None:
            raise Unsupported(f"norm {type(block.norm).__name__} in its head has no kernel")
        if block.dropout is not None and (type(block.dropout) is not nn.Dropout or block.dropout.training):
            raise Unsupported(f"{type(block.dropout).__name__} in its head is none or in training mode")
        layers.append(LinearLayer(block.fc, _read_activation(block.act)))
    return tuple(layers)
