"""When a block may run on its fused op, and what that op needs, remembered from call to call.

A block may not if anything a user did to it would be lost: a hook, parametrization or overridden forward on a child, a
replaced child, a norm in training mode, an attribute set to another value. Everything is looked at on each call, which
takes a few microseconds; the walk through the modules is done again only when something has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from mnv3_fast import _library
from mnv3_fast.models.description import BlockDescription, ConvLayer, SqueezeExciteLayer, Unsupported

logger = logging.getLogger("mnv3_fast")

Description = BlockDescription | ConvLayer | SqueezeExciteLayer
_CONV_ATTRIBUTES = ("stride", "padding", "dilation", "groups", "padding_mode")


def input_reason(x: Any) -> str | None:
    """Why the kernels cannot take an input, None if they can."""
    if not isinstance(x, Tensor):
        return "the input is no tensor (symbolic tracing)"
    if _library.backend() == "reference":
        return "the kernels are switched off (backend reference)"
    if not _library.EXTENSION:
        return "there are no compiled kernels"
    if x.dtype is not torch.float32:
        return f"the input is {x.dtype}, the kernels are float32"
    if x.device.type != "cpu":
        return f"the input is on {x.device}, the kernels are for the CPU"
    if x.dim() != 4:
        return f"the input has {x.dim()} dimensions, not 4"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    return None


def functorch_active() -> bool:
    """Whether a torch.func transform is under way."""
    return torch._C._functorch.maybe_current_level() is not None


class Fusion:
    """A block's description, its tensors by the dictionaries that hold them, and what must still be as it was."""

    def __init__(self, root: nn.Module, description: Description) -> None:
        self.description = description
        convs, norms, layers = _parts(description)
        self.sources = [_source(owner, name) for layer in layers for owner, name in _tensor_names(layer)]
        self.children = [(m._modules, list(m._modules.values())) for m in root.modules()]
        inside = [m for m in root.modules() if m is not root]
        self.hooks = [
            hooks
            for m in inside
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        ]
        self.dicts = [m.__dict__ for m in inside]
        self.attributes = [(c.__dict__, name, getattr(c, name)) for c in convs for name in _CONV_ATTRIBUTES]
        self.attributes += [(n.__dict__, "eps", n.eps) for n in norms]
        self.attributes += [(n.__dict__, "training", False) for n in norms]
        residual = "use_res_connect" if hasattr(root, "use_res_connect") else "has_skip"
        if residual in root.__dict__:
            self.attributes.append((root.__dict__, residual, root.__dict__[residual]))
        self.arguments: Any = None
        if isinstance(description, BlockDescription):
            _, spec, constants = description.flatten()
            self.arguments = spec, constants

    def unchanged(self) -> bool:
        """Whether the modules are those that were described, as they were."""
        for children, expected in self.children:
            if list(children.values()) != expected:
                return False
        return all(attributes[name] == value for attributes, name, value in self.attributes)

    def reason(self) -> str | None:
        """Why an unchanged block may not run fused, None if it may."""
        for hooks in self.hooks:
            if hooks:
                return "a module inside has a hook"
        for attributes in self.dicts:
            if "forward" in attributes:
                return "a module inside has a forward of its own"
        return "there are global module hooks" if torch_module._has_any_global_hook() else None

    def tensors(self) -> list[Tensor]:
        """The tensors of the block, as they are now, in the order of the op."""
        return [holder[name] for holder, name in self.sources]

    def __deepcopy__(self, memo: Any) -> None:
        return None  # a copied module is described anew

    def __reduce__(self) -> Any:
        return type(None), ()


def _parts(description: Description) -> tuple[list[Any], list[Any], list[Any]]:
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
            norms += [] if layer.norm is None else [layer.norm]
        else:
            convs += [layer.fc1, layer.fc2]
    return convs, norms, layers


def _tensor_names(layer: Any) -> list[tuple[nn.Module, str]]:
    if isinstance(layer, SqueezeExciteLayer):
        return [(layer.fc1, "weight"), (layer.fc1, "bias"), (layer.fc2, "weight"), (layer.fc2, "bias")]
    names = [(layer.conv, "weight")]
    if layer.conv.bias is not None:
        names.append((layer.conv, "bias"))
    if layer.norm is not None:
        if layer.norm.weight is not None:
            names += [(layer.norm, "weight"), (layer.norm, "bias")]
        names += [(layer.norm, "running_mean"), (layer.norm, "running_var")]
    return names


def _source(owner: nn.Module, name: str) -> tuple[dict, str]:
    for holder in (owner._parameters, owner._buffers):
        if holder.get(name) is not None:
            return holder, name
    raise Unsupported(f"{type(owner).__name__}.{name} is neither a parameter nor a buffer")


def describe(root: nn.Module, reader: Callable[[nn.Module], Description]) -> Fusion | str:
    """Describe a block now: a Fusion, or the reason why there is none."""
    try:
        fusion = Fusion(root, reader(root))
        if any(n.__dict__["training"] for n in _parts(fusion.description)[1]):
            return "a norm inside is in training mode"
        if any(conv._modules for conv in _parts(fusion.description)[0]):
            return "a convolution inside is parametrized"
        if any(t.dtype is not torch.float32 for t in fusion.tensors()):
            return "its weights are not float32"
        return fusion
    except Unsupported as unsupported:
        return str(unsupported)


def fusion_of(root: nn.Module, reader: Callable[[nn.Module], Description]) -> Fusion | str:
    """The Fusion of a block in eager mode, from the last call where nothing has changed; else the reason."""
    fusion = root.__dict__.get("_fusion")
    try:
        fresh = fusion is not None and fusion.unchanged()
    except KeyError:  # an attribute has gone
        fresh = False
    if not fresh:
        fusion = describe(root, reader)
        if isinstance(fusion, str):
            root.__dict__.pop("_fusion", None)
            logger.debug("%s runs on torch: %s", type(root).__name__, fusion)
            return fusion
        root.__dict__["_fusion"] = fusion
    reason = fusion.reason()
    if reason is not None:
        logger.debug("%s runs on torch: %s", type(root).__name__, reason)
        return reason
    return fusion
