"""Optimizers and learning rates of a recipe: torch's own; LAMB, which torch does not have, is timm's."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import lr_scheduler

from mnv3_fast.training import recipe


def build_optimizer(model: nn.Module, how: recipe.Optimizer, scale: float = 1.0) -> torch.optim.Optimizer:
    """The optimizer of all parameters that want gradients, in groups of one weight decay each.

    Args:
        model: whose parameters.
        how: the recipe's ``[optimizer]``.
        scale: the learning rate is multiplied by it.

    Raises:
        ValueError: for LAMB where timm is not installed.
    """
    options: dict[str, Any] = {name: getattr(how, name) for name in recipe.OPTIMIZER_OPTIONS[how.name]}
    options = {name: value for name, value in options.items() if value is not None}
    return _optimizer_class(how.name)(_groups(model, how), lr=how.lr * scale, **options)


def _optimizer_class(name: str) -> Any:
    if name == "lamb":
        if importlib.util.find_spec("timm") is None:
            raise ValueError("optimizer lamb: torch has none, and timm, whose would be used, is not installed")
        from timm.optim import Lamb

        return Lamb
    return {"rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]


def _groups(model: nn.Module, how: recipe.Optimizer) -> list[dict[str, Any]]:
    decays = {"norm": how.norm_weight_decay, "bias": how.bias_weight_decay, "weight": how.weight_decay}
    by_decay: dict[float, list[nn.Parameter]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                decay = decays["norm" if isinstance(module, _BatchNorm) else "bias" if name == "bias" else "weight"]
                by_decay.setdefault(how.weight_decay if decay is None else decay, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in by_decay.items()]


def build_schedule(optimizer: torch.optim.Optimizer, how: recipe.Schedule, epochs: int) -> lr_scheduler.LRScheduler:
    """What sets the learning rate; it is stepped once an epoch, as all sources of the recipes do."""
    warmup = how.warmup_epochs
    main = _main_schedule(optimizer, how, epochs - warmup)
    if not warmup:
        return main
    rise = lr_scheduler.LinearLR(optimizer, start_factor=how.warmup_factor, total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, main], milestones=[warmup])


def _main_schedule(optimizer: torch.optim.Optimizer, how: recipe.Schedule, epochs: int) -> lr_scheduler.LRScheduler:
    if how.name == "step":
        return lr_scheduler.StepLR(optimizer, how.step_size, how.gamma)
    if how.name == "multistep":
        return lr_scheduler.MultiStepLR(optimizer, list(how.milestones or ()), how.gamma)
    if how.name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)
