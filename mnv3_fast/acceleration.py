"""accelerate, restore, refresh: fused modules put in place of a model's own, and taken out again."""

from __future__ import annotations

import copy
import logging

from torch import nn

from mnv3_fast.models.description import Unsupported
from mnv3_fast.nn import torchvision_blocks
from mnv3_fast.nn.base import Fused, original_class

logger = logging.getLogger("mnv3_fast")


def _swaps_for(model: nn.Module) -> dict[type, type]:
    swaps = dict(torchvision_blocks.SWAPS)
    if any(type(module).__module__.startswith("timm.") for module in model.modules()):
        from mnv3_fast.nn import timm_blocks

        swaps |= timm_blocks.SWAPS
    return swaps


def swap(module: nn.Module, swaps: dict[type, type], reasons: list[str], path: str = "") -> int:
    """Put fused classes in place below and including ``module``; returns how many, and adds the reasons of the rest."""
    fused = swaps.get(type(module))
    if fused is not None:
        try:
            fused._reader(module)
        except Unsupported as unsupported:
            reasons.append(f"{path or type(module).__name__}: {unsupported}")
        else:
            module.__class__ = fused
            return 1
    if isinstance(module, Fused):
        return 1
    count = 0
    for name, child in module._modules.items():
        if child is not None:
            count += swap(child, swaps, reasons, f"{path}.{name}" if path else name)
    return count


def _guard_formats(module: nn.Module) -> bool:
    """Give the outermost Sequentials that hold fused modules a forward that keeps the input's memory format."""
    if isinstance(module, (Fused, torchvision_blocks.Sequential)):
        return True
    if type(module) is nn.Sequential:
        if not any(isinstance(inside, Fused) for inside in module.modules()):
            return False
        module.__class__ = torchvision_blocks.Sequential
        return True
    found = [_guard_formats(child) for child in module._modules.values() if child is not None]
    return any(found)


def share(model: nn.Module) -> nn.Module:
    """A copy of a module tree that shares every Parameter and buffer with the original."""
    tensors = list(model.parameters()) + list(model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def accelerate(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Make a model run on fused kernels in eval mode; training, state_dict, names and hooks stay what they were.

    Inverted residual blocks, convolution blocks and squeeze-excite modules of torchvision and timm are found anywhere
    in the tree. Whatever the kernels cannot run keeps its own forward; ``explain`` says why.

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
    result = model if inplace else share(model)
    reasons: list[str] = []
    if swap(result, _swaps_for(result), reasons) == 0:
        found = "; ".join(reasons[:5]) or "it has no block of torchvision's or timm's MobileNetV3"
        raise ValueError(f"accelerate: nothing in {type(model).__name__} can be replaced: {found}")
    _guard_formats(result)
    return result


def restore(model: nn.Module) -> nn.Module:
    """Undo ``accelerate`` in place: every module gets its own class back. Returns the model.

    Raises:
        TypeError: if ``model`` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, Fused):
            module.refresh()
            module.__class__ = original_class(type(module))
        elif type(module) is torchvision_blocks.Sequential:
            module.__class__ = nn.Sequential
    return model


def refresh(model: nn.Module) -> nn.Module:
    """Forget packed weights after a write that no check can see (``p.data[0] = x``, a NumPy view). Returns the model.

    Raises:
        TypeError: if ``model`` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"refresh: model must be an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, Fused):
            module.refresh()
    return model
