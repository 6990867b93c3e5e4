"""When a block may run on its fused op, and what that op needs, remembered from call to call.

A block may not if anything a user did to it would be lost: a hook, parametrization or overridden forward on a child, a
replaced child, a norm in training mode, an attribute set to another value. Everything is looked at on each call, which
takes a few microseconds; the walk through the modules is done again only when something has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from mnv3_fast import _library
from mnv3_fast.models.description import BlockDescription, ConvLayer, SqueezeExciteLayer, Unsupported

logger = logging.getLogger("mnv3_fast")

Description = BlockDescription | ConvLayer | SqueezeExciteLayer
Reader = Callable[[nn.Module], Description]
_conv_attributes = itemgetter("stride", "padding", "dilation", "groups", "padding_mode")
_norm_attributes = itemgetter("eps", "training")
_training = itemgetter("training")
_PLAIN = (Tensor, nn.Parameter)


def environment_reason() -> str | None:
    """Why no input at all can run on the kernels, None if it can."""
    if _library.backend() == "reference":
        return "the kernels are switched off (backend reference)"
    if not _library.EXTENSION:
        return "there are no compiled kernels"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    return None


def input_reason(x: Any) -> str | None:
    """Why the kernels cannot take an input, None if they can."""
    if not isinstance(x, Tensor):
        return "the input is no tensor (symbolic tracing)"
    if x.dtype is not torch.float32:
        return f"the input is {x.dtype}, the kernels are float32"
    if x.device.type != "cpu":
        return f"the input is on {x.device}, the kernels are for the CPU"
    if x.layout is not torch.strided:
        return f"the input's layout is {x.layout}, not strided"
    if x.dim() != 4:
        return f"the input has {x.dim()} dimensions, not 4"
    return environment_reason()


def transform_active() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is under way."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def parts_of(description: Description) -> tuple[list[Any], list[Any], list[Any]]:
    """The convolutions, the norms and the layers of a description."""
    if isinstance(description, BlockDescription):
        layers: list[Any] = list(description.layers())
        if description.squeeze_excite is not None:
            layers.append(description.squeeze_excite)
    else:
        layers = [description]
    convs: list[Any] = []
    norms: list[Any] = []
    for layer in layers:
        if isinstance(layer, ConvLayer):
            convs.append(layer.conv)
            if layer.norm is not None:
                norms.append(layer.norm)
        else:
            convs += [layer.fc1, layer.fc2]
    return convs, norms, layers


def modules_reason(inside: Sequence[nn.Module], description: Description) -> str | None:
    """Why the modules of a block may not be replaced by one op. torch.compile traces this: plain loops only."""
    for module in inside:
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return "a module inside has a hook"
        if "forward" in module.__dict__:
            return "a module inside has a forward of its own"
    convs, norms, _ = parts_of(description)
    for norm in norms:
        if norm.training:
            return "a norm inside is in training mode"
    for conv in convs:
        if conv._modules:
            return "a convolution inside is parametrized"
    return "there are global module hooks" if torch_module._has_any_global_hook() else None


def flattened(description: Description) -> tuple[list[Tensor], tuple[list[int], list[float]] | None]:
    """The tensors of a description, and the other arguments of a block's op."""
    if isinstance(description, BlockDescription):
        tensors, spec, constants = description.flatten()
        return tensors, (spec, constants)
    return description.tensors(), None


class Fusion:
    """A block's description, its tensors by the dictionaries that hold them, and what must still be as it was."""

    def __init__(self, root: nn.Module, description: Description, inside: Sequence[nn.Module]) -> None:
        self.description = description
        convs, norms, layers = parts_of(description)
        names = [pair for layer in layers for pair in _tensor_names(layer)]
        self.sources = [_source(owner, name) for owner, name in names if getattr(owner, name) is not None]
        self.absent = [
            (owner._parameters if name in owner._parameters else owner._buffers, name)
            for owner, name in names
            if getattr(owner, name) is None
        ]
        self.inside = list(inside)
        self.classes = [type(m) for m in inside]
        self.children = [(m._modules, list(m._modules.values())) for m in (root, *inside) if m._modules]
        self.leaves = [m._modules for m in inside if not m._modules]
        self.hooks = [
            hooks
            for m in inside
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        ]
        self.dicts = [m.__dict__ for m in inside]
        self.attributes = [(_conv_attributes, c.__dict__, _conv_attributes(c.__dict__)) for c in convs]
        self.attributes += [(_norm_attributes, n.__dict__, (n.eps, False)) for n in norms]
        if root._modules.get("drop_path") is not None:
            self.attributes.append((_training, root.drop_path.__dict__, root.drop_path.training))
        for name in ("use_res_connect", "has_skip"):
            if name in root.__dict__:
                self.attributes.append((itemgetter(name), root.__dict__, root.__dict__[name]))
        self.arguments = flattened(description)[1]

    def tensors(self) -> list[Tensor] | None:
        """The tensors of the block in the order of the op, or None if it is not as it was described."""
        for children, expected in self.children:
            if list(children.values()) != expected:
                return None
        if any(self.leaves):
            return None
        for read, attributes, value in self.attributes:
            if read(attributes) != value:
                return None
        for holder, name in self.absent:
            if holder.get(name) is not None:
                return None
        if [type(module) for module in self.inside] != self.classes:
            return None
        found = [holder.get(name) for holder, name in self.sources]
        for tensor in found:
            if type(tensor) not in _PLAIN or tensor.dtype is not torch.float32:
                return None
        return found

    def reason(self) -> str | None:
        """Why a block that is as it was described may not run fused, None if it may."""
        if any(self.hooks):
            return "a module inside has a hook"
        for attributes in self.dicts:
            if "forward" in attributes:
                return "a module inside has a forward of its own"
        return "there are global module hooks" if torch_module._has_any_global_hook() else None

    def __deepcopy__(self, memo: Any) -> None:
        return None  # a copied module is described anew

    def __reduce__(self) -> Any:
        return type(None), ()


def _tensor_names(layer: Any) -> list[tuple[nn.Module, str]]:
    """Everything that a layer's tensors could come from, whether it is there or not."""
    if isinstance(layer, SqueezeExciteLayer):
        return [(layer.fc1, "weight"), (layer.fc1, "bias"), (layer.fc2, "weight"), (layer.fc2, "bias")]
    names = [(layer.conv, "weight"), (layer.conv, "bias")]
    if layer.norm is not None:
        names += [(layer.norm, name) for name in ("weight", "bias", "running_mean", "running_var")]
    return names


def _source(owner: nn.Module, name: str) -> tuple[dict, str]:
    for holder in (owner._parameters, owner._buffers):
        tensor = holder.get(name)
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN:
            raise Unsupported(f"{type(owner).__name__}.{name} is a {type(tensor).__name__}, not a plain tensor")
        if tensor.dtype is not torch.float32:
            raise Unsupported(f"its weights are {tensor.dtype}, not float32")
        return holder, name
    raise Unsupported(f"{type(owner).__name__}.{name} is neither a parameter nor a buffer")


def describe(root: nn.Module, reader: Reader, inside: Sequence[nn.Module] | None = None) -> Fusion | str:
    """Describe a block now: a Fusion, or the reason why there is none. ``inside`` defaults to all modules below."""
    try:
        description = reader(root)
        inside = [m for m in root.modules() if m is not root] if inside is None else inside
        return modules_reason(inside, description) or Fusion(root, description, inside)
    except Unsupported as unsupported:
        return str(unsupported)


def fusion_of(
    root: nn.Module, reader: Reader, inside: Sequence[nn.Module] | None = None
) -> tuple[Fusion, list[Tensor]] | str:
    """The Fusion of a block in eager mode with its tensors as they are now; else the reason why there is none."""
    fusion = root.__dict__.get("_fusion")
    try:
        tensors = None if fusion is None else fusion.tensors()
    except KeyError:  # an attribute has gone
        tensors = None
    if tensors is None:
        root.__dict__.pop("_fusion", None)
        fusion = describe(root, reader, inside)
        if isinstance(fusion, str):
            logger.debug("%s runs on torch: %s", type(root).__name__, fusion)
            return fusion
        root.__dict__["_fusion"] = fusion
        return fusion, [holder[name] for holder, name in fusion.sources]
    reason = fusion.reason()
    if reason is not None:
        logger.debug("%s runs on torch: %s", type(root).__name__, reason)
        return reason
    return fusion, tensors


def traced_description(
    root: nn.Module, reader: Reader, inside: Sequence[nn.Module] | None = None
) -> Description | None:
    """The description of a block while a graph is captured, None if it may not run fused; nothing is remembered."""
    try:
        description = reader(root)
    except Unsupported:
        return None
    inside = [m for m in root.modules() if m is not root] if inside is None else inside
    if modules_reason(inside, description) is not None:
        return None
    for layer in parts_of(description)[2]:
        for tensor in layer.tensors():
            if tensor.dtype is not torch.float32:
                return None
    return description
