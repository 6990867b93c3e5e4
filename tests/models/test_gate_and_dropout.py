"""Paddle's gate and dropout in a network: the slope and the scaling are inside the kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.ops.misc import SqueezeExcitation

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.models.torchvision import read_head
from mnv3_fast.nn import DownscaleDropout, Hardsigmoid
from tests.models.common import WAYS

X = testing.parity_images(2, 64, 75, seed=6)


def build(slope: float = 0.2, p: float = 0.2) -> nn.Module:
    """torchvision's small network with Paddle's gate and dropout."""
    model = mnv3_fast.mobilenet_v3_small(num_classes=50)
    for module in model.modules():
        if isinstance(module, SqueezeExcitation):
            module.scale_activation = Hardsigmoid(slope)
    model.classifier[2] = DownscaleDropout(p)
    return mnv3_fast.restore(model)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return testing.parity_model(build, seed=3, size=64)


@torch.no_grad()
def test_equals_torch(model: nn.Module, instruction_set: str) -> None:
    for way, convert in WAYS.items():
        converted = convert(model)
        for _ in range(3):
            testing.assert_net_equal(converted(X), model(X), way)


@torch.no_grad()
@pytest.mark.parametrize("wrong", [{"slope": 1 / 6}, {"p": 0.0}, {"p": 0.25}], ids=str)
def test_another_slope_or_scale_shows(wrong: dict[str, float], model: nn.Module) -> None:
    other = build(**wrong).eval()
    other.load_state_dict(model.state_dict())
    assert testing.relative_error(mnv3_fast.freeze(other)(X), model(X)) > 100 * testing.NET_LIMIT


def test_all_of_it_runs_on_kernels(model: nn.Module) -> None:
    accelerated, engine = mnv3_fast.accelerate(model), mnv3_fast.freeze(model)
    explanation = mnv3_fast.explain(accelerated, X)
    assert not explanation.fallbacks and "one plan" in str(explanation)
    assert isinstance(engine, mnv3_fast.Engine) and type(engine.rest) is nn.Identity


@pytest.mark.slow
@torch.no_grad()
def test_graphs_hold_the_scale(model: nn.Module) -> None:
    accelerated = mnv3_fast.accelerate(model)
    exported = torch.export.export(accelerated, (X,)).module()
    torch._dynamo.reset()
    for graph in (exported, torch.compile(accelerated, fullgraph=True, backend="eager")):
        testing.assert_net_equal(graph(X), model(X))


def _other_slope(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Hardsigmoid):
            module.slope = 0.1


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "slope": _other_slope,
    "p": lambda model: setattr(model.classifier[2], "p", 0.5),
    "no dropout": lambda model: model.classifier.__setitem__(2, nn.Identity()),
    "torch's": lambda model: model.classifier.__setitem__(2, nn.Dropout(0.2).eval()),
    "hook": lambda model: model.classifier[2].register_forward_hook(lambda m, args, output: output + 1),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_takes_effect(change: str, model: nn.Module) -> None:
    accelerated = mnv3_fast.accelerate(copy.deepcopy(model), inplace=True)
    for _ in range(3):
        before = accelerated(X)
    CHANGES[change](accelerated)
    expected = mnv3_fast.restore(copy.deepcopy(accelerated))(X)
    for _ in range(4):
        testing.assert_net_equal(accelerated(X), expected)
    assert testing.relative_error(before, expected) > 100 * testing.NET_LIMIT


@torch.no_grad()
def test_dropout_in_training_mode_drops(model: nn.Module) -> None:
    accelerated = mnv3_fast.accelerate(copy.deepcopy(model), inplace=True)
    for _ in range(3):
        accelerated(X)
    accelerated.classifier[2].train()
    assert not torch.equal(accelerated(X), accelerated(X))


LINEARS = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
DROP = DownscaleDropout(0.25)
HEADS: dict[str, tuple[list[nn.Module], list[float], int]] = {
    "in front": ([DROP, LINEARS[0]], [0.75], 0),
    "twice": ([LINEARS[0], DROP, nn.Dropout(), DROP, LINEARS[1]], [1.0, 0.75**2], 0),
    "each its own": ([DROP, LINEARS[0], DROP, LINEARS[1], LINEARS[2]], [0.75, 0.75, 1.0], 0),
    "at the end": ([LINEARS[0], nn.ReLU(), DROP], [1.0], 1),
    "at the end, with more": ([LINEARS[0], DROP, nn.Identity(), nn.Tanh(), LINEARS[1]], [1.0], 4),
    "in front of an activation": ([LINEARS[0], DROP, nn.Hardswish(), LINEARS[1]], [1.0], 3),
}


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_where_a_dropout_may_stand(head: str) -> None:
    modules, scales, count = HEADS[head]
    layers, rest = read_head(nn.Sequential(*modules).eval())
    assert [layer.scale for layer in layers] == scales
    assert len(rest) == count
    x = torch.randn(4, 8)
    y = x
    for layer in layers:
        y = nn.functional.linear(y * layer.scale, layer.linear.weight, layer.linear.bias)
        y = torch.relu(y) if layer.activation == "relu" else y
    for module in rest:
        y = module(y)
    torch.testing.assert_close(y, nn.Sequential(*modules).eval()(x))
