"""What takes part in a fused module: its layers, their tensors and where these are kept, and what speaks against it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules import module as torch_module
from torchvision.ops.misc import FrozenBatchNorm2d

from mnv3_fast import gpu
from mnv3_fast.models.description import (
    BlockDescription,
    ConvLayer,
    LinearLayer,
    NetDescription,
    SqueezeExciteLayer,
    Unsupported,
)
from mnv3_fast.models.layers import DownscaleDropout

Description = BlockDescription | ConvLayer | SqueezeExciteLayer | NetDescription
FLAGS = ("use_res_connect", "has_skip", "with_res_shortcut", "with_se", "with_expand_conv")
"""What a block itself computes by."""
ATTRIBUTES = (
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "eps",
    "output_size",
    "start_dim",
    "end_dim",
    "slope",
    "p",
    "pool_type",
    "flatten",
    "dim",
    "return_weight",
    "order",
    "with_norm",
    "norm_name",
    "with_activation",
    "with_explicit_padding",
    "efficient_conv_bn_eval_forward",
    "bias",
    "divisor",
    "min_value",
    "max_value",
    "min_val",
    "max_val",
    *FLAGS,
)
"""What a module computes by, beside its tensors and children; one that holds none of them costs nothing."""
OVERRIDES = ("forward", "_conv_forward", "_scale", "_call_impl")
"""Methods that run in a module's call; as attributes of one object they are somebody's own."""
IMMUTABLE = (bool, int, float, str, tuple, type(None))
PLAIN = (Tensor, nn.Parameter)


def _layers_of(description: Description) -> list[Any]:
    if isinstance(description, NetDescription):
        stem = [] if description.stem is None else [description.stem]
        tail = [] if description.tail is None else [description.tail]
        inside = [layer for block in description.blocks for layer in _layers_of(block)]
        return [*stem, *inside, *tail, *description.head]
    if isinstance(description, BlockDescription):
        squeeze = description.squeeze_excite
        return [*description.layers(), *([] if squeeze is None else [squeeze])]
    return [description]


def parts_of(description: Description) -> tuple[list[Any], list[Any], list[Any]]:
    """The convolutions and linear layers, the norms and the layers of a description."""
    layers = _layers_of(description)
    convs: list[Any] = []
    norms: list[Any] = []
    for layer in layers:
        if isinstance(layer, ConvLayer):
            convs.append(layer.conv)
            if layer.norm is not None:
                norms.append(layer.norm)
        elif isinstance(layer, LinearLayer):
            convs.append(layer.linear)
        else:
            convs += [layer.fc1, layer.fc2]
    return convs, norms, layers


def computed_attributes(model: nn.Module) -> list[Tensor]:
    """The tensors that are attributes of modules and results of a computation that autograd knows."""
    values = [value for module in model.modules() for value in module.__dict__.values()]
    return [value for value in values if isinstance(value, Tensor) and not value.is_leaf]


def copy_model(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy in which every module is in the mode of its original.

    Those of torch.fx are not by themselves: they are made anew, in training mode, and torchvision's have a graph for
    each mode.
    """
    result = copy.deepcopy(model, memo)
    modes = {name: module.training for name, module in model.named_modules(remove_duplicate=False)}
    for name, module in result.named_modules(remove_duplicate=False):
        mode = modes.get(name, module.training)
        if isinstance(module, GraphModule) and module.training is not mode:
            module.train(mode)
        module.training = mode
    return result


def modules_below(root: nn.Module) -> list[nn.Module]:
    """All modules inside of one: what takes part in a block."""
    return [module for module in root.modules() if module is not root]


def drops_in_training(module: nn.Module) -> bool:
    """Dropout, ours that scales at inference, and timm's DropPath, which drops whole blocks."""
    return isinstance(module, (nn.Dropout, DownscaleDropout)) or type(module).__name__ == "DropPath"


def modules_reason(inside: Sequence[nn.Module], description: Description) -> str | None:
    """Why the modules of a block may not be replaced by one op. torch.compile traces this: plain loops only."""
    for module in inside:
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return "a module inside has a hook"
        for name in OVERRIDES:
            if name in module.__dict__:
                return "a module inside has a forward of its own"
        for name in ATTRIBUTES:
            if not isinstance(module.__dict__.get(name, 0), IMMUTABLE):
                return f"{name} is a {type(module.__dict__[name]).__name__}, which may change unseen"
        if drops_in_training(module) and module.training:
            return "a dropout inside is in training mode"
    convs, norms, _ = parts_of(description)
    for norm in norms:
        if norm.training and not isinstance(norm, FrozenBatchNorm2d):
            return "a norm inside is in training mode"
    for conv in convs:
        if conv._modules:
            return "a convolution inside is parametrized"
    return "there are global module hooks" if torch_module._has_any_global_hook() else None


def flattened(description: Description) -> tuple[list[Tensor], tuple[list[int], list[float]] | None]:
    """The tensors of a description, and the other arguments of a block's or a network's op."""
    if isinstance(description, (BlockDescription, NetDescription)):
        tensors, spec, constants = description.flatten()
        return tensors, (spec, constants)
    return description.tensors(), None


def is_kernel_dtype(tensor: Tensor) -> bool:
    """Whether the kernels of its device read a tensor's dtype."""
    return tensor.dtype in (gpu.DTYPES if tensor.is_cuda else (torch.float32,))


def is_readable(tensor: Tensor) -> bool:
    """Whether all of a tensor lies in memory of the CPU or a GPU; its storage may have been freed or cut under it."""
    if tensor.device.type not in ("cpu", "cuda") or tensor.layout is not torch.strided:
        return False
    if tensor.numel() == 0:
        return True
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    return tensor.data_ptr() != 0 and tensor.untyped_storage().nbytes() >= end


def tensor_names(layer: Any) -> list[tuple[nn.Module, str]]:
    """Everything that a layer's tensors could come from, whether it is there or not."""
    if isinstance(layer, LinearLayer):
        return [(layer.linear, "weight"), (layer.linear, "bias")]
    if isinstance(layer, SqueezeExciteLayer):
        return [(layer.fc1, "weight"), (layer.fc1, "bias"), (layer.fc2, "weight"), (layer.fc2, "bias")]
    names = [(layer.conv, "weight"), (layer.conv, "bias")]
    if layer.norm is not None:
        names += [(layer.norm, name) for name in ("weight", "bias", "running_mean", "running_var")]
    return names


def source_of(owner: nn.Module, name: str) -> tuple[dict, str]:
    if name in owner.__dict__:
        raise Unsupported(f"{type(owner).__name__}.{name} is hidden by an attribute")
    for holder in (owner._parameters, owner._buffers):
        tensor = holder.get(name)
        if tensor is None:
            continue
        if type(tensor) not in PLAIN:
            raise Unsupported(f"{type(owner).__name__}.{name} is a {type(tensor).__name__}, not a plain tensor")
        if not is_readable(tensor):
            raise Unsupported(f"{type(owner).__name__}.{name} has no memory of its size on the CPU or a GPU")
        if not is_kernel_dtype(tensor):
            raise Unsupported(f"its weights are {tensor.dtype}, not float32")
        return holder, name
    raise Unsupported(f"{type(owner).__name__}.{name} is neither a parameter nor a buffer")
