"""Never stale: every write that can be seen takes effect at the next call; the others need refresh."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import cached_parity_model

X = testing.parity_images(1, 64, seed=1)


def conv(model: nn.Module) -> nn.Conv2d:
    return model.features[4].block[0][0]


def norm(model: nn.Module) -> nn.BatchNorm2d:
    return model.features[4].block[1][1]


def step(model: nn.Module, make: Callable) -> None:
    optimizer = make(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    optimizer.step()


def swap_data(model: nn.Module) -> None:
    conv(model).weight.data = conv(model).weight.data * 1.5


def load(model: nn.Module, **options: bool) -> None:
    state = {key: value * 1.01 if value.is_floating_point() else value for key, value in model.state_dict().items()}
    model.load_state_dict(state, **options)


def average(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.9).add_(parameter.data, alpha=0.05)


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "in place": lambda m: conv(m).weight.mul_(1.5),
    "copy_": lambda m: conv(m).weight.copy_(conv(m).weight * 1.5),
    ".data in place": lambda m: conv(m).weight.data.mul_(1.5),
    ".data replaced": swap_data,
    "parameter replaced": lambda m: setattr(conv(m), "weight", nn.Parameter(conv(m).weight * 1.5)),
    "numpy": lambda m: conv(m).weight.detach().numpy().__imul__(1.5),
    "load_state_dict": load,
    "load_state_dict assign": lambda m: load(m, assign=True),
    "sgd": lambda m: step(m, lambda p: torch.optim.SGD(p, 0.1)),
    "sgd foreach": lambda m: step(m, lambda p: torch.optim.SGD(p, 0.1, foreach=True)),
    "adam fused": lambda m: step(m, lambda p: torch.optim.Adam(p, 0.1, fused=True)),
    "moving average": average,
    "vector_to_parameters": lambda m: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(m.parameters()) * 1.01, m.parameters()
    ),
    "running_mean": lambda m: norm(m).running_mean.add_(0.3),
    "one running_var": lambda m: norm(m).running_var.data[3:4].mul_(3),
    "one bias": lambda m: norm(m).bias.data[3:4].add_(3),
    "eps": lambda m: setattr(norm(m), "eps", 0.2),
    "squeeze-excite bias": lambda m: m.features[4].block[2].fc2.bias.data.add_(0.5),
}


@torch.no_grad()
@pytest.mark.parametrize("write", WRITES)
def test_a_write_takes_effect(write: str) -> None:
    model = mnv3_fast.accelerate(copy.deepcopy(cached_parity_model("small")), inplace=True)
    before = model(X)
    WRITES[write](model)
    after = model(X)
    assert not torch.equal(before, after)
    assert testing.relative_error(after, mnv3_fast.restore(copy.deepcopy(model))(X)) <= testing.NET_LIMIT
    assert not mnv3_fast.explain(model, X).fallbacks


@torch.no_grad()
@pytest.mark.parametrize("cure", ["refresh", "eval"])
def test_a_write_to_one_weight_needs_refresh(cure: str) -> None:
    model = mnv3_fast.accelerate(copy.deepcopy(cached_parity_model("small")), inplace=True)
    weight = model.features[9].block[3][0].weight  # project of a wide block: larger than what is compared whole
    before = model(X)
    weight.data[1, 1] = 50
    assert torch.equal(model(X), before)  # the limit of what can be seen; documented
    mnv3_fast.refresh(model) if cure == "refresh" else model.eval()
    after = model(X)
    assert not torch.equal(after, before)
    assert testing.relative_error(after, mnv3_fast.restore(copy.deepcopy(model))(X)) <= testing.NET_LIMIT


@torch.no_grad()
def test_a_dtype_change_and_back() -> None:
    model = mnv3_fast.accelerate(copy.deepcopy(cached_parity_model("small")), inplace=True)
    model(X)
    model.half().float()
    assert testing.relative_error(model(X), mnv3_fast.restore(copy.deepcopy(model))(X)) <= testing.NET_LIMIT
