"""What a block or a network is made of, whichever library its modules come from.

``describe_block`` and ``describe_net`` read modules of torchvision, timm and mmpretrain (by the files of these names)
into these classes; ``accelerate``, ``freeze`` and ``explain`` know nothing else. A description refers to the original
modules, so it has no copy of any weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mnv3_fast.engine.kinds import BLOCK, LINEAR, POINTWISE, POOL, STEM
from mnv3_fast.models.checks import Unsupported, check_conv, is_same_conv
from mnv3_fast.models.layers import Hardsigmoid
from mnv3_fast.ops.elements import ACTIVATIONS, GATES, SAME
from mnv3_fast.ops.inverted_residual.layout import HAS_BATCH_NORM, HAS_BIAS, NOT_AFFINE
from mnv3_fast.ops.network.layout import Stage, has_bias, join

STOCK: dict[type, type] = {}
"""Each fused class (mnv3_fast.nn) and the class that it stands for."""


def stock_class(cls: type) -> type:
    """The class that a fused class stands for; any other class itself."""
    return STOCK.get(cls, cls)


@dataclass(frozen=True)
class ConvLayer:
    """A convolution, the BatchNorm after it and its activation ("none", "relu", "hardswish", "relu6")."""

    conv: nn.Conv2d
    norm: nn.Module | None
    activation: str

    def flags(self) -> int:
        """Which tensors :meth:`tensors` lists."""
        bias = HAS_BIAS if self.conv.bias is not None else 0
        if self.norm is None:
            return bias
        return bias | HAS_BATCH_NORM | (NOT_AFFINE if self.norm.weight is None else 0)

    def tensors(self) -> list[Tensor]:
        """Weight, bias, BatchNorm's weight, bias, running_mean, running_var: those that exist."""
        found = [self.conv.weight]
        if self.conv.bias is not None:
            found.append(self.conv.bias)
        if self.norm is not None:
            if self.norm.weight is not None:
                found += [self.norm.weight, self.norm.bias]
            found += [self.norm.running_mean, self.norm.running_var]
        return found

    def eps(self) -> float:
        """BatchNorm's eps, 0 without one."""
        return 0.0 if self.norm is None else float(self.norm.eps)

    def window(self) -> list[int]:
        """stride h, w, padding left, right, top, bottom (or four times SAME), dilation h, w."""
        if is_same_conv(self.conv):
            return [*self.conv.stride, *[SAME] * 4, *self.conv.dilation]
        pad_h, pad_w = self.conv.padding
        return [*self.conv.stride, pad_w, pad_w, pad_h, pad_h, *self.conv.dilation]

    def batch_norm(self) -> tuple | None:
        """The ``batch_norm`` argument of the ops."""
        if self.norm is None:
            return None
        norm = self.norm
        return norm.weight, norm.bias, norm.running_mean, norm.running_var, float(norm.eps)

    def stage(self) -> Stage:
        """The stage of ``mnv3_fast::network`` that this convolution is; raises Unsupported for a depthwise one."""
        kind = kind_of_conv(self)
        if kind == "depthwise":
            raise Unsupported("a lone depthwise convolution is no stage of a network")
        spec = [self.flags(), ACTIVATIONS[self.activation]]
        if kind == "pointwise":
            return Stage(POINTWISE, spec, [self.eps()], self.tensors())
        return Stage(STEM, spec + self.window(), [self.eps()], self.tensors())

    def weights(self) -> int:
        """Multiply-adds for one output pixel."""
        return self.conv.weight.numel()


@dataclass(frozen=True)
class SqueezeExciteLayer:
    """The two 1x1 convolutions (with bias) of squeeze-excite; gate "hardsigmoid" or "sigmoid"."""

    fc1: nn.Conv2d
    fc2: nn.Conv2d
    activation: str
    gate: str
    slope: float

    def tensors(self) -> list[Tensor]:
        """Weights and biases in the order of the ops."""
        return [self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias]


@dataclass(frozen=True)
class BlockDescription:
    """An inverted residual block: expand (or None), depthwise, squeeze-excite (or None), project."""

    expand: ConvLayer | None
    depthwise: ConvLayer
    squeeze_excite: SqueezeExciteLayer | None
    project: ConvLayer
    residual: bool

    def layers(self) -> Iterator[ConvLayer]:
        """The convolutions in order."""
        if self.expand is not None:
            yield self.expand
        yield self.depthwise
        yield self.project

    def stage(self) -> Stage:
        """The stage of ``mnv3_fast::network`` that this block is."""
        tensors, spec, constants = self.flatten()
        return Stage(BLOCK, spec, constants, tensors)

    def flatten(self) -> tuple[list[Tensor], list[int], list[float]]:
        """tensors, spec and constants of ``mnv3_fast::inverted_residual`` (ops/inverted_residual/layout.py)."""
        tensors: list[Tensor] = []
        for layer in self.layers():
            tensors += layer.tensors()
        expand, depthwise, project, squeeze = self.expand, self.depthwise, self.project, self.squeeze_excite
        spec = [0, 0, 0] if expand is None else [1, expand.flags(), ACTIVATIONS[expand.activation]]
        spec += [depthwise.flags(), ACTIVATIONS[depthwise.activation], *depthwise.window()]
        if squeeze is None:
            spec += [0, 0, 0]
        else:
            tensors += squeeze.tensors()
            spec += [1, ACTIVATIONS[squeeze.activation], GATES[squeeze.gate]]
        spec += [project.flags(), ACTIVATIONS[project.activation], int(self.residual)]
        slope = 1 / 6 if squeeze is None else squeeze.slope
        return tensors, spec, [0.0 if expand is None else expand.eps(), depthwise.eps(), project.eps(), slope]


@dataclass(frozen=True)
class LinearLayer:
    """A fully connected layer, as nn.Linear or as a 1x1 convolution over one pixel, and its activation.

    ``scale`` is what its input is multiplied by: a dropout that scales at inference stands in front of it.
    """

    linear: nn.Module
    activation: str
    scale: float = 1.0

    def stage(self) -> Stage:
        """The stage of ``mnv3_fast::network`` that this layer is."""
        spec = [has_bias(self.linear.bias), ACTIVATIONS[self.activation]]
        return Stage(LINEAR, spec, [self.scale], self.tensors())

    def tensors(self) -> list[Tensor]:
        """Weight and bias, if there is one."""
        return [self.linear.weight] if self.linear.bias is None else [self.linear.weight, self.linear.bias]


@dataclass(frozen=True)
class NetDescription:
    """A network as far as one plan can run it.

    ``blocks`` are inverted residuals, and 1x1 convolutions where a network has some beside its ``tail``;
    ``head`` are the layers after pooling that join the plan; ``rest`` is what comes after them and stays torch's
    (in order of execution); ``pooled`` says whether the plan ends behind the pool, ``headed`` whether the network is
    also called in two halves, and ``ends`` after which stages it gives maps; its engine then does as well.
    """

    stem: ConvLayer | None
    blocks: tuple[BlockDescription | ConvLayer, ...]
    tail: ConvLayer | None
    pooled: bool
    head: tuple[LinearLayer, ...] = ()
    rest: tuple[nn.Module, ...] = field(default=())
    headed: bool = False
    ends: tuple[int, ...] = ()

    def input_channels(self) -> int:
        """Channels of what the plan reads."""
        first = self.stem or (self.blocks[0] if self.blocks else self.tail)
        assert first is not None, "a description of nothing"
        if isinstance(first, BlockDescription):
            first = first.expand or first.depthwise
        rows, columns = first.conv.weight.shape[:2]  # a weight may have been replaced, and conv.in_channels left
        return rows if kind_of_conv(first) == "depthwise" else columns

    def stages(self) -> list[Stage]:
        """The stages of ``mnv3_fast::network``."""
        stages = [] if self.stem is None else [self.stem.stage()]
        stages += [block.stage() for block in self.blocks]
        if self.tail is not None:
            stages.append(self.tail.stage())
        if self.pooled:
            stages.append(Stage(POOL, [], [], []))
        return stages + [layer.stage() for layer in self.head]

    def flatten(self) -> tuple[list[Tensor], list[int], list[float]]:
        """tensors, spec and constants of ``mnv3_fast::network`` (ops/network/layout.py)."""
        return join(self.stages())


@dataclass(frozen=True)
class PyramidDescription:
    """A network that gives several outputs: what lies between two of them is one plan.

    ``names`` are those of the outputs, for a dictionary; without names they come in a ``container``, a list or a tuple.
    """

    parts: tuple[NetDescription, ...]
    names: tuple[str, ...] | None = None
    container: type = list

    @property
    def rest(self) -> tuple[nn.Module, ...]:
        """What stays torch's: nothing."""
        return ()


def read_activation(module: nn.Module | None) -> str:
    """The name of an activation module; raises Unsupported for one that the kernels do not have."""
    if module is None or type(module) is nn.Identity:
        return "none"
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.Hardswish:
        return "hardswish"
    if type(module) is nn.ReLU6:
        if (module.min_val, module.max_val) != (0, 6):  # it is a Hardtanh, which computes by these
            raise Unsupported(f"ReLU6 from {module.min_val} to {module.max_val} has no kernel")
        return "relu6"
    raise Unsupported(f"activation {type(module).__name__} has no kernel (relu, hardswish and relu6 have)")


def read_gate(module: nn.Module) -> tuple[str, float]:
    """Name and slope of a gate module."""
    if type(module) is nn.Hardsigmoid:
        return "hardsigmoid", 1 / 6
    if type(module) is Hardsigmoid:
        return "hardsigmoid", float(module.slope)
    if type(module) is nn.Sigmoid:
        return "sigmoid", 1 / 6
    raise Unsupported(f"gate {type(module).__name__} has no kernel (hardsigmoid and sigmoid have)")


def describe_block(module: nn.Module) -> BlockDescription:
    """Read an inverted residual block of torchvision, timm or mmpretrain; raises Unsupported with the reason."""
    from mnv3_fast.models import mmpretrain, timm, torchvision

    return _read(module, (torchvision.read_block, timm.read_block, mmpretrain.read_block), "inverted residual block")


def describe_net(model: nn.Module) -> NetDescription:
    """Read a whole MobileNetV3, or the ``features`` of one; raises Unsupported with the reason."""
    from mnv3_fast.models import mmpretrain, timm, torchvision

    return _read(model, (torchvision.read_net, timm.read_net, mmpretrain.read_net), "MobileNetV3")


def describe_pyramid(model: nn.Module) -> PyramidDescription:
    """Read a network that gives several maps: the backbone of a detector or segmenter; raises Unsupported."""
    from mnv3_fast.models import mmpretrain, timm, torchvision

    readers = torchvision.read_pyramid, timm.read_pyramid, mmpretrain.read_pyramid
    return _read(model, readers, "backbone of MobileNetV3")


def _read(module: nn.Module, readers: Sequence[Callable[[nn.Module], Any]], what: str) -> Any:
    """What the first library's reader that knows a module makes of it."""
    for reader in readers:
        description = reader(module)
        if description is not None:
            return description
    raise Unsupported(f"{type(module).__module__}.{type(module).__qualname__} is no known {what}")


def kind_of_conv(layer: ConvLayer) -> str:
    """Which op runs a lone convolution: "pointwise", "depthwise" or "stem"; raises Unsupported."""
    conv = layer.conv
    if conv.kernel_size == (1, 1) and conv.groups == 1:
        kind = "pointwise"
    elif conv.groups > 1:
        kind = "depthwise"
    else:
        kind = "stem"
    check_conv(conv, kind)
    return kind
