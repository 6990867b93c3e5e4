"""Optimizers and learning rates against the formulas of the recipes' sources."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import nn

from mnv3_fast.training import read_recipe
from mnv3_fast.training.optimizers import build_optimizer, build_schedule
from mnv3_fast.training.recipe import Optimizer, Schedule


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def rates(how: Schedule, epochs: int, lr: float = 1.0) -> list[float]:
    optimizer = build_optimizer(net(), Optimizer("sgd", lr))
    schedule = build_schedule(optimizer, how, epochs)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_step() -> None:
    how = read_recipe("mmpretrain").schedule
    assert rates(how, 600, 0.064) == pytest.approx([0.064 * 0.973 ** (epoch // 2) for epoch in range(600)], rel=1e-9)


def test_multistep() -> None:
    found = rates(read_recipe("mmpretrain_cifar10").schedule, 200)
    assert found == pytest.approx([1.0] * 120 + [0.1] * 50 + [0.01] * 30, rel=1e-9)


def test_cosine_with_warm_up() -> None:
    found = rates(Schedule("cosine", warmup_epochs=5, warmup_factor=0.01), 20)
    wanted = [0.01 + 0.99 * epoch / 5 for epoch in range(5)]
    wanted += [(1 + math.cos(math.pi * epoch / 15)) / 2 for epoch in range(15)]
    assert found == pytest.approx(wanted, rel=1e-6)


def test_constant() -> None:
    assert rates(Schedule(), 5) == [1.0] * 5


def test_rmsprop_is_torchs_with_the_recipes_numbers() -> None:
    optimizer = build_optimizer(net(), read_recipe("mmpretrain").optimizer)
    assert type(optimizer) is torch.optim.RMSprop
    assert len(optimizer.param_groups) == 1
    wanted = {"lr": 0.064, "alpha": 0.9, "momentum": 0.9, "eps": 0.0316, "weight_decay": 1e-5, "centered": False}
    assert {name: optimizer.param_groups[0][name] for name in wanted} == wanted


def test_norms_and_biases_have_their_own_weight_decay() -> None:
    model = net()
    model[3].weight.requires_grad_(False)
    how = Optimizer("adamw", 0.1, weight_decay=0.3, norm_weight_decay=0.1, bias_weight_decay=0.2)
    found = {
        group["weight_decay"]: {id(parameter) for parameter in group["params"]}
        for group in build_optimizer(model, how).param_groups
    }
    assert found == {
        0.3: {id(model[0].weight)},
        0.2: {id(model[0].bias), id(model[3].bias)},
        0.1: {id(model[1].weight), id(model[1].bias)},
    }


def test_the_learning_rate_is_scaled() -> None:
    assert build_optimizer(net(), Optimizer("sgd", 0.1), scale=0.5).param_groups[0]["lr"] == 0.05


def test_lamb_is_timms_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.optim import Lamb

    how = read_recipe("timm_lamb").optimizer
    assert type(build_optimizer(net(), how)) is Lamb
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^optimizer lamb: torch has none, and timm, whose would be used, is not inst"):
        build_optimizer(net(), how)
