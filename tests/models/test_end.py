"""What comes after the blocks of an accelerated network runs as one op, and nothing that a user did to it is lost."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import cached_parity_model, count_ops

X = testing.parity_images(2, 64, seed=1)
END = ("mnv3_fast::run_plan", 13)  # stem, eleven blocks, end


@pytest.fixture
def model() -> nn.Module:
    return mnv3_fast.accelerate(copy.deepcopy(cached_parity_model("small")), inplace=True)


def stock(model: nn.Module) -> nn.Module:
    return mnv3_fast.restore(copy.deepcopy(model))


def _replace_classifier(model: nn.Module) -> None:
    model.classifier[3] = nn.Linear(1024, 5)


def _replace_all(model: nn.Module) -> None:
    model.classifier = nn.Sequential(nn.LayerNorm(576), nn.Linear(576, 7))


def _linear_alone(model: nn.Module) -> None:
    model.classifier = nn.Linear(576, 5)


def _identity(model: nn.Module) -> None:
    model.classifier = nn.Identity()


def _without_bias(model: nn.Module) -> None:
    model.classifier[0] = nn.Linear(576, 1024, bias=False)


def _write(model: nn.Module) -> None:
    model.classifier[0].weight.mul_(1.5)


def _write_data(model: nn.Module) -> None:
    model.classifier[3].bias.data = model.classifier[3].bias.data + 1


def _write_norm(model: nn.Module) -> None:
    model.features[-1][1].running_mean.add_(0.5)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [_replace_classifier, _replace_all, _linear_alone, _identity, _without_bias, _write, _write_data, _write_norm],
)
def test_changes_take_effect(model: nn.Module, change: Callable[[nn.Module], None]) -> None:
    before = model(X)
    change(model)
    after = model(X)
    assert after.shape != before.shape or testing.relative_error(after, before) > 1e-3
    assert testing.relative_error(after, stock(model)(X)) <= testing.NET_LIMIT
    assert count_ops(lambda: model(X))[END[0]] == END[1]


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", ["features", "tail", "avgpool", "classifier", "linear", "forward", "parametrized", "max pool", "global"]
)
def test_the_modules_run_where_someone_looks(model: nn.Module, kind: str) -> None:
    model(X)
    calls: list[int] = []
    look = lambda *_: calls.append(1)  # noqa: E731
    places = {
        "features": model.features,
        "tail": model.features[-1][0],
        "avgpool": model.avgpool,
        "classifier": model.classifier,
        "linear": model.classifier[3],
    }
    handles = []
    if kind in places:
        handles.append(places[kind].register_forward_hook(look))
    elif kind == "forward":
        original = model.classifier[1].forward
        model.classifier[1].forward = lambda x: (look(), original(x))[1]
    elif kind == "parametrized":
        parametrizations.weight_norm(model.classifier[3])
    elif kind == "max pool":
        model.avgpool = nn.AdaptiveMaxPool2d(1)
    else:
        handles.append(nn.modules.module.register_module_forward_hook(look))
    try:
        output = model(X)
        assert bool(calls) == (kind not in ("parametrized", "max pool"))
    finally:
        for handle in handles:
            handle.remove()
    reference = copy.deepcopy(cached_parity_model("small"))
    if kind == "max pool":
        reference.avgpool = nn.AdaptiveMaxPool2d(1)
    assert testing.relative_error(output, reference(X)) <= testing.NET_LIMIT


@torch.no_grad()
def test_dropout_in_training_mode_drops(model: nn.Module) -> None:
    """Monte Carlo dropout: the model is in eval mode, its dropout is not."""
    model(X)
    model.classifier[2].train()
    assert not torch.equal(model(X), model(X))
    reason = {row.path: row.reason for row in mnv3_fast.explain(model, X).rows}["classifier"]
    assert reason == "a dropout inside is in training mode"
    model.classifier[2].eval()
    assert torch.equal(model(X), model(X))


def test_gradients_and_captures_see_the_modules(model: nn.Module) -> None:
    model(X).sum().backward()
    assert model.classifier[3].weight.grad is not None
    with torch.no_grad():
        program = torch.export.export(model, (X,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert not [target for target in targets if "run_plan" in target]
    assert len([target for target in targets if "linear" in target]) == 2


@torch.no_grad()
def test_refresh_and_train_forget_the_weights(model: nn.Module) -> None:
    before = model(X)
    for forget in (mnv3_fast.refresh, lambda m: m.train().eval()):
        weight = model.classifier[0].weight
        with torch.inference_mode(False):
            weight.data[1, 1:8] += 100.0  # between the samples, behind the version counter
        forget(model)
        assert testing.relative_error(model(X), stock(model)(X)) <= testing.NET_LIMIT
    assert testing.relative_error(model(X), before) > 1e-3


@torch.no_grad()
def test_subclass_keeps_its_forward() -> None:
    class Shifted(type(cached_parity_model("small"))):  # type: ignore[misc]
        def _forward_impl(self, x: torch.Tensor) -> torch.Tensor:
            return super()._forward_impl(x) + 1

    model = copy.deepcopy(cached_parity_model("small"))
    expected = model(X) + 1
    model.__class__ = Shifted
    assert testing.relative_error(mnv3_fast.accelerate(model)(X), expected) <= testing.NET_LIMIT
