"""accelerate, restore, refresh: fused modules put in place of a model's own, and taken out again."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import nn

from mnv3_fast import gpu
from mnv3_fast.models.description import Unsupported, stock_class
from mnv3_fast.nn import containers, mmpretrain_blocks, torchvision_blocks
from mnv3_fast.nn.base import Fused, Packed
from mnv3_fast.nn.fusion import forget
from mnv3_fast.nn.parts import computed_attributes, copy_model

logger = logging.getLogger("mnv3_fast")


def swaps_for(model: nn.Module) -> tuple[dict[type, type[Fused]], dict[type, type]]:
    """The fused class of each class of torchvision's, and timm's and mmpretrain's if the model has some, and the same
    of their containers."""
    met, around = mmpretrain_blocks.stand_ins_for(model)
    swaps = torchvision_blocks.SWAPS | met
    guards = containers.CONTAINERS | torchvision_blocks.CONTAINERS | around
    if any(type(module).__module__.startswith("timm.") for module in model.modules()):
        from mnv3_fast.nn import timm_blocks

        swaps |= timm_blocks.SWAPS
        guards |= timm_blocks.CONTAINERS
    return swaps, guards


def unsupported_reason(module: nn.Module, fused: type[Fused]) -> str | None:
    """Why a fused class may not take the place of a module's own class; None if it may."""
    try:
        fused._reader(module)  # type: ignore[arg-type]
    except Unsupported as unsupported:
        return str(unsupported)
    return None


def _swap(module: nn.Module, swaps: dict[type, type[Fused]], path: str = "") -> Iterator[tuple[str, str | None]]:
    """Put fused classes in place below and including a module; yields each path with the reason if it could not be."""
    fused = swaps.get(type(module))
    if fused is not None:
        reason = unsupported_reason(module, fused)
        yield path or type(module).__name__, reason
        if reason is None:
            module.__class__ = fused
    if isinstance(module, Fused):
        if fused is None:
            yield path or type(module).__name__, None
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _swap(child, swaps, f"{path}.{name}" if path else name)


def _guard(module: nn.Module, guards: dict[type, type], inside_sequential: bool = False) -> None:
    """Put containers in place that keep the input's memory format; the outermost Sequential, none in a block."""
    is_block = isinstance(module, Fused) or type(module) in torchvision_blocks.SWAPS
    if is_block or not any(isinstance(inside, Fused) for inside in module.modules()):
        return
    is_sequential = stock_class(type(module)) is nn.Sequential
    if type(module) in guards and not (is_sequential and inside_sequential):
        module.__class__ = guards[type(module)]
    for child in module._modules.values():
        if child is not None:
            _guard(child, guards, is_sequential)


def fuse(model: nn.Module) -> list[tuple[str, str | None]]:
    """Put all fused modules and containers in place; each path with the reason if it could not be."""
    swaps, guards = swaps_for(model)
    found = list(_swap(model, swaps))
    _guard(model, guards)
    return found


def share(model: nn.Module) -> nn.Module:
    """A copy of a module tree that shares every Parameter and buffer with the original, and results kept as attributes.

    Pruning and the older kinds of weight and spectral norm keep such, anew on each call; deepcopy refuses them.
    """
    tensors = list(model.parameters()) + list(model.buffers()) + computed_attributes(model)
    return copy_model(model, {id(tensor): tensor for tensor in tensors})


def accelerate(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Make a model run on fused kernels in eval mode; training, state_dict, names and hooks stay what they were.

    Inverted residual blocks, convolution blocks and squeeze-excite modules of torchvision, timm and mmpretrain are
    found anywhere in the tree: in classifiers, feature pyramids, backbones, detectors. Whatever the kernels cannot run
    keeps its own forward; ``explain`` says why.

    Args:
        model: a module tree; its classifier, detector heads and the like stay as they are.
        inplace: change ``model`` itself. Otherwise a new tree is returned, with the same Parameters and buffers, so
            that optimizers keep working.

    Returns:
        The accelerated model.

    Raises:
        TypeError: if ``model`` is no nn.Module.
        ValueError: if nothing in it can be replaced; the message lists the reasons.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be an nn.Module, got {type(model).__name__}")
    gpu.try_kernels(model)
    result = model if inplace else share(model)
    found = fuse(result)
    if not any(reason is None for _, reason in found):
        reasons = [f"{path}: {reason}" for path, reason in found[:5]]
        why = "; ".join(reasons) or "it has no block of torchvision's, timm's or mmpretrain's MobileNetV3"
        raise ValueError(f"accelerate: nothing in {type(model).__name__} can be replaced: {why}")
    return result


def restore(model: nn.Module) -> nn.Module:
    """Undo ``accelerate`` in place: every module gets its own class back. Returns the model.

    Raises:
        TypeError: if ``model`` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, Packed):
            module.refresh()
        if stock_class(type(module)) is not type(module):
            forget(module)
            module.__class__ = stock_class(type(module))
    return model


def refresh(model: nn.Module) -> nn.Module:
    """Forget packed weights after a write that no check can see (``p.data[0, 1] = x``, NumPy). Returns the model.

    Raises:
        TypeError: if ``model`` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"refresh: model must be an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, Packed):
            module.refresh()
    return model
