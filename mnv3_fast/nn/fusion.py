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
from torchvision.ops.misc import FrozenBatchNorm2d

from mnv3_fast import _library
from mnv3_fast.engine import cache
from mnv3_fast.engine.op import WATCH
from mnv3_fast.models.description import (
    BlockDescription,
    ConvLayer,
    NetDescription,
    Unsupported,
    kind_of_conv,
)
from mnv3_fast.nn.parts import (
    ATTRIBUTES,
    IMMUTABLE,
    OVERRIDES,
    PLAIN,
    Description,
    drops_in_training,
    is_kernel_dtype,
    is_readable,
    modules_reason,
    parts_of,
    source_of,
    tensor_names,
)
from mnv3_fast.ops.inverted_residual.op import PACKED as BLOCK
from mnv3_fast.ops.network.layout import join
from mnv3_fast.ops.network.op import PACKED as NETWORK

logger = logging.getLogger("mnv3_fast")

Reader = Callable[[nn.Module], Description]
Inside = Callable[[nn.Module], Sequence[nn.Module]]
REMEMBERED = ("_fusion", "_whole")
"""What a fused module has in its dictionary beside the original's."""
_CONTAINERS = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_OWN = (*_CONTAINERS, "training", "use_res_connect", "has_skip")


class Fusion:
    """A block's description, its tensors by the dictionaries that hold them, and what must still be as it was.

    ``plan`` gives the packed weights; they are kept as long as the tensors are what they were packed from.
    ``traced_with_grad`` says what the last ``torch.jit.trace`` did.
    """

    def __init__(self, root: nn.Module, description: Description, inside: Sequence[nn.Module]) -> None:
        self.description = description
        self.arguments = _arguments_of(description)
        self.traced_with_grad = False
        self._packed: tuple[cache.Entry, Any] | None = None  # with its tensors' Watch, always together
        _, norms, layers = parts_of(description)
        names = [pair for layer in layers for pair in tensor_names(layer)]
        self.sources = [source_of(owner, name) for owner, name in names if getattr(owner, name) is not None]
        self.shapes = [holder[name].shape for holder, name in self.sources]
        self._flat_sources = _flat(self.sources)
        empty = [(owner, name) for owner, name in names if getattr(owner, name) is None]
        absent = [(holder, name) for owner, name in empty for holder in (owner._parameters, owner._buffers)]
        absent += [(owner.__dict__, name) for owner, name in names]  # where an attribute would hide a parameter
        absent += [(module.__dict__, name) for module in inside for name in OVERRIDES]
        # Nothing here may hold the root or its dictionary, which holds this object: a cycle keeps dead models alive.
        own = [(name, root.__dict__[name]) for name in _OWN if name in root.__dict__]
        eval_only = {id(norm) for norm in norms if not isinstance(norm, FrozenBatchNorm2d)}
        eval_only |= {id(module) for module in inside if drops_in_training(module)}
        same = [(root._modules, name, child) for name, child in root._modules.items()]
        for m in inside:  # one module after the other, as its dictionaries lie in memory
            watched = [*_CONTAINERS, *(name for name in ATTRIBUTES if name in m.__dict__)]
            same += [(m.__dict__, name, m.__dict__[name]) for name in watched]
            same += [(m.__dict__, "training", False)] if id(m) in eval_only else []
            same += [(m._modules, name, child) for name, child in m._modules.items()]
        if root._modules.get("drop_path") is not None:
            same.append((root.drop_path.__dict__, "training", root.drop_path.training))
        self._own, self._same, self._absent = _flat(own), _flat(same), _flat(absent)
        self._sizes = _flat((m._modules, len(m._modules)) for m in (root, *inside))
        self._types = _flat((m, type(m)) for m in inside)
        hooks = [h for m in inside for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
        self._hooks = _flat((h, 0) for h in [*hooks, *[m._backward_pre_hooks for m in inside]])
        self._looks = (self._own, self._same, self._absent, self._sizes + self._hooks, self._types)

    def current(self, root: nn.Module) -> cache.Entry | None:
        """The packed weights, if there are any and nothing at all has changed since: what most calls find."""
        packed = self._packed
        if packed is None or packed[0].dropped:
            return None
        return packed[0] if packed[1].all_unchanged(root.__dict__, self._looks, self._flat_sources) else None

    def tensors(self, root: nn.Module) -> list[Tensor] | None:
        """The tensors of the block in the order of the op, or None if it is not as it was described."""
        extension = _library.extension()
        if not extension.unchanged(root.__dict__, self._own, self._same, self._absent, self._sizes, self._types):
            return None
        found = [holder.get(name) for holder, name in self.sources]
        packed = self._packed
        if packed is not None and packed[1].unchanged(self._flat_sources):
            return found
        self._packed = None
        for tensor, shape in zip(found, self.shapes, strict=True):
            if type(tensor) not in PLAIN or not is_kernel_dtype(tensor) or tensor.shape != shape:
                return None
            if not is_readable(tensor):
                return None
        return found

    def reason(self) -> str | None:
        """Why a block that is as it was described may not run fused, None if it may."""
        if not _library.extension().unchanged({}, (), (), (), self._hooks, ()):
            return "a module inside has a hook"
        return "there are global module hooks" if torch_module._has_any_global_hook() else None

    def plan(self, tensors: list[Tensor]) -> cache.Entry | None:
        """The weights that :meth:`tensors` just gave, packed; None for what no plan holds."""
        packed = self._packed
        if packed is None or packed[0].dropped:
            if self.arguments is None:
                return None
            with torch._C._AutoDispatchBelowAutograd():
                watch = _library.extension().Watch(self._looks, self._flat_sources, WATCH(tensors))
            op = BLOCK if isinstance(self.description, BlockDescription) else NETWORK
            packed = (op.packed(tensors, *self.arguments), watch)
            if watch.unchanged(self._flat_sources):  # else written meanwhile, perhaps to be taken back
                self._packed = packed
        return packed[0]

    def __deepcopy__(self, memo: Any) -> None:
        return None  # a copied module is described anew

    def __reduce__(self) -> Any:
        return type(None), ()


def _arguments_of(description: Description) -> tuple[list[int], list[float]] | None:
    """The arguments beside tensors of the op whose plan holds what is described; None for what no plan holds."""
    if isinstance(description, (BlockDescription, NetDescription)):
        _, spec, constants = description.flatten()
        return spec, constants
    if isinstance(description, ConvLayer) and kind_of_conv(description) != "depthwise":
        _, spec, constants = join([description.stage()])
        return spec, constants
    return None


def _flat(rows: Iterable[tuple]) -> tuple:
    return tuple(item for row in rows for item in row)


def forget(module: nn.Module) -> None:
    """Drop what is remembered of a module."""
    for name in REMEMBERED:
        module.__dict__.pop(name, None)


def log_fallback(root: nn.Module, reason: str) -> None:
    """Say at level DEBUG why a module runs on torch."""
    logger.debug("%s runs on torch: %s", type(root).__name__, reason)


def describe(root: nn.Module, reader: Reader, inside: Inside) -> Fusion | str:
    """Describe a block now: a Fusion, or the reason why there is none."""
    try:
        description = reader(root)
        modules = inside(root)
        for name in ("use_res_connect", "has_skip"):
            if not isinstance(root.__dict__.get(name, 0), IMMUTABLE):
                return f"{name} is a {type(root.__dict__[name]).__name__}, which may change unseen"
        return modules_reason(modules, description) or Fusion(root, description, modules)
    except Unsupported as unsupported:
        return str(unsupported)


def fusion_of(root: nn.Module, reader: Reader, inside: Inside) -> tuple[Fusion, list[Tensor]] | str:
    """The Fusion of a block in eager mode with its tensors as they are now; else the reason why there is none."""
    fusion = root.__dict__.get("_fusion")
    tensors = None if fusion is None else fusion.tensors(root)
    if tensors is None:
        root.__dict__.pop("_fusion", None)
        fusion = describe(root, reader, inside)
        if isinstance(fusion, str):
            log_fallback(root, fusion)
            return fusion
        root.__dict__["_fusion"] = fusion
        return fusion, [holder[name] for holder, name in fusion.sources]
    reason = fusion.reason()
    if reason is not None:
        log_fallback(root, reason)
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
            if not is_kernel_dtype(tensor):
                return None
    return description
