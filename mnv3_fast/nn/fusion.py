"""When a block may run on its fused op, and what that op needs, remembered from call to call.

A block may not if anything a user did to it would be lost: a hook, parametrization or overridden forward on a child, a
replaced child, a norm in training mode, an attribute set to another value. Everything is looked at on each call, which
takes a few microseconds; the walk through the modules is done again only when something has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from mnv3_fast import _library
from mnv3_fast.engine import cache
from mnv3_fast.engine.packing import pack_net
from mnv3_fast.models.description import (
    BlockDescription,
    ConvLayer,
    LinearLayer,
    NetDescription,
    SqueezeExciteLayer,
    Unsupported,
    kind_of_conv,
)
from mnv3_fast.ops.inverted_residual.op import packed as packed_block

logger = logging.getLogger("mnv3_fast")

Description = BlockDescription | ConvLayer | SqueezeExciteLayer | NetDescription
Reader = Callable[[nn.Module], Description]
Inside = Callable[[nn.Module], Sequence[nn.Module]]
_ATTRIBUTES = ("stride", "padding", "dilation", "groups", "padding_mode", "eps", "output_size")
_CONTAINERS = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_ROOT_ATTRIBUTES = ("use_res_connect", "has_skip")
_PLAIN = (Tensor, nn.Parameter)


def parts_of(description: Description) -> tuple[list[Any], list[Any], list[Any]]:
    """The convolutions and linear layers, the norms and the layers of a description."""
    layers: list[Any] = []
    if isinstance(description, NetDescription):
        layers += [layer for layer in (description.stem, description.tail) if layer is not None]
        layers += description.head
    elif isinstance(description, BlockDescription):
        layers += description.layers()
        if description.squeeze_excite is not None:
            layers.append(description.squeeze_excite)
    else:
        layers.append(description)
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


def modules_below(root: nn.Module) -> list[nn.Module]:
    """All modules inside of one: what takes part in a block."""
    return [module for module in root.modules() if module is not root]


def modules_reason(inside: Sequence[nn.Module], description: Description) -> str | None:
    """Why the modules of a block may not be replaced by one op. torch.compile traces this: plain loops only."""
    for module in inside:
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return "a module inside has a hook"
        if "forward" in module.__dict__:
            return "a module inside has a forward of its own"
        if isinstance(module, nn.Dropout) and module.training:
            return "a dropout inside is in training mode"
    convs, norms, _ = parts_of(description)
    for module in (*convs, *norms):
        for name in _ATTRIBUTES:
            if isinstance(module.__dict__.get(name), list):
                return f"{name} is a list, which may change unseen"
    for norm in norms:
        if norm.training:
            return "a norm inside is in training mode"
    for conv in convs:
        if conv._modules:
            return "a convolution inside is parametrized"
    return "there are global module hooks" if torch_module._has_any_global_hook() else None


def flattened(
    description: BlockDescription | ConvLayer | SqueezeExciteLayer,
) -> tuple[list[Tensor], tuple[list[int], list[float]] | None]:
    """The tensors of a description, and the other arguments of a block's op."""
    if isinstance(description, BlockDescription):
        tensors, spec, constants = description.flatten()
        return tensors, (spec, constants)
    return description.tensors(), None


class Fusion:
    """A block's description, its tensors by the dictionaries that hold them, and what must still be as it was.

    ``plan`` gives the packed weights; they are kept as long as the tensors are what they were packed from.
    """

    def __init__(self, root: nn.Module, description: Description, inside: Sequence[nn.Module]) -> None:
        self.description = description
        self.home = root.__dict__  # a shallow copy of the module has another
        self.arguments = description.flatten()[1:] if isinstance(description, BlockDescription) else None
        self.entry: cache.Entry | None = None
        _, norms, layers = parts_of(description)
        names = [pair for layer in layers for pair in _tensor_names(layer)]
        self.sources = [_source(owner, name) for owner, name in names if getattr(owner, name) is not None]
        self.shapes = [holder[name].shape for holder, name in self.sources]
        empty = [(owner, name) for owner, name in names if getattr(owner, name) is None]
        absent = [(holder, name) for owner, name in empty for holder in (owner._parameters, owner._buffers)]
        absent += [(owner.__dict__, name) for owner, name in names]  # where an attribute would hide a parameter
        absent += [(module.__dict__, "forward") for module in inside]
        same = [(m._modules, name, child) for m in (root, *inside) for name, child in m._modules.items()]
        same += [(m.__dict__, name, m.__dict__[name]) for m in (root, *inside) for name in _CONTAINERS]
        same += [(m.__dict__, name, m.__dict__[name]) for m in inside for name in _ATTRIBUTES if name in m.__dict__]
        droppers = [module for module in inside if isinstance(module, nn.Dropout)]
        same += [(module.__dict__, "training", False) for module in (*norms, *droppers)]
        if root._modules.get("drop_path") is not None:
            same.append((root.drop_path.__dict__, "training", root.drop_path.training))
        same += [(root.__dict__, name, root.__dict__[name]) for name in _ROOT_ATTRIBUTES if name in root.__dict__]
        self._same, self._absent = _flat(same), _flat(absent)
        self._sizes = _flat((m._modules, len(m._modules)) for m in (root, *inside))
        self._types = _flat((m, type(m)) for m in inside)
        hooks = [h for m in inside for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
        self._hooks = _flat((h, 0) for h in [*hooks, *[m._backward_pre_hooks for m in inside]])

    def tensors(self) -> list[Tensor] | None:
        """The tensors of the block in the order of the op, or None if it is not as it was described."""
        if not _library.extension().unchanged(self._same, self._absent, self._sizes, self._types):
            return None
        found = [holder.get(name) for holder, name in self.sources]
        if self.entry is not None and cache.is_current(self.entry, found):
            return found
        self.entry = None
        for tensor, shape in zip(found, self.shapes, strict=True):
            if type(tensor) not in _PLAIN or tensor.dtype is not torch.float32 or tensor.shape != shape:
                return None
            if not is_readable(tensor):
                return None
        return found

    def reason(self) -> str | None:
        """Why a block that is as it was described may not run fused, None if it may."""
        if not _library.extension().unchanged((), (), self._hooks, ()):
            return "a module inside has a hook"
        return "there are global module hooks" if torch_module._has_any_global_hook() else None

    def plan(self, tensors: list[Tensor]) -> cache.Entry | None:
        """The weights that :meth:`tensors` just gave, packed; None for what no plan holds (a lone depthwise
        convolution, squeeze-excite)."""
        if self.entry is None:
            self.entry = self._pack(tensors)
        return self.entry

    def _pack(self, tensors: list[Tensor]) -> cache.Entry | None:
        description = self.description
        if isinstance(description, BlockDescription):
            assert self.arguments is not None
            return packed_block(tensors, *self.arguments)
        if isinstance(description, ConvLayer):
            kind = kind_of_conv(description)
            if kind == "depthwise":
                return None
            stem, tail = (description, None) if kind == "stem" else (None, description)
            description = NetDescription(stem, (), tail, pooled=False)
        if not isinstance(description, NetDescription):
            return None
        arguments = [(layer.window(), layer.eps(), layer.activation) for layer in _convs_of(description)]
        arguments += [(layer.activation,) for layer in description.head]
        net = description
        return cache.find(tensors, (net.pooled, arguments), lambda: pack_net(net))

    def __deepcopy__(self, memo: Any) -> None:
        return None  # a copied module is described anew

    def __reduce__(self) -> Any:
        return type(None), ()


def is_readable(tensor: Tensor) -> bool:
    """Whether all of a tensor lies in memory of the CPU; its storage may have been freed or cut under it."""
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return False
    if tensor.numel() == 0:
        return True
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    return tensor.data_ptr() != 0 and tensor.untyped_storage().nbytes() >= end


def _flat(rows: Iterable[tuple]) -> tuple:
    return tuple(item for row in rows for item in row)


def _convs_of(description: NetDescription) -> list[ConvLayer]:
    return [layer for layer in (description.stem, description.tail) if layer is not None]


def _tensor_names(layer: Any) -> list[tuple[nn.Module, str]]:
    """Everything that a layer's tensors could come from, whether it is there or not."""
    if isinstance(layer, LinearLayer):
        return [(layer.linear, "weight"), (layer.linear, "bias")]
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
        if not is_readable(tensor):
            raise Unsupported(f"{type(owner).__name__}.{name} has no memory of its size on the CPU")
        if tensor.dtype is not torch.float32:
            raise Unsupported(f"its weights are {tensor.dtype}, not float32")
        return holder, name
    raise Unsupported(f"{type(owner).__name__}.{name} is neither a parameter nor a buffer")


def describe(root: nn.Module, reader: Reader, inside: Inside) -> Fusion | str:
    """Describe a block now: a Fusion, or the reason why there is none."""
    try:
        description = reader(root)
        modules = inside(root)
        return modules_reason(modules, description) or Fusion(root, description, modules)
    except Unsupported as unsupported:
        return str(unsupported)


def fusion_of(root: nn.Module, reader: Reader, inside: Inside) -> tuple[Fusion, list[Tensor]] | str:
    """The Fusion of a block in eager mode with its tensors as they are now; else the reason why there is none."""
    fusion = root.__dict__.get("_fusion")
    tensors = None if fusion is None or fusion.home is not root.__dict__ else fusion.tensors()
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


def traced_description(root: nn.Module, reader: Reader, inside: Inside) -> Description | None:
    """The description of a block while a graph is captured, None if it may not run fused; nothing is remembered."""
    try:
        description = reader(root)
    except Unsupported:
        return None
    if modules_reason(inside(root), description) is not None:
        return None
    for layer in parts_of(description)[2]:
        for tensor in layer.tensors():
            if tensor.dtype is not torch.float32:
                return None
    return description
