"""What comes after the blocks of an accelerated network runs as one op, and nothing that a user did to it is lost."""

from __future__ import annotations

import copy
from collections import OrderedDict
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


def look(*_: object) -> None:
    """A hook that does nothing."""


@pytest.fixture
def model() -> nn.Module:
    """Not one plan altogether, as somebody looks at a block."""
    model = mnv3_fast.accelerate(copy.deepcopy(cached_parity_model("small")), inplace=True)
    model.features[1].register_forward_hook(look)
    return model


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


class Always(nn.Dropout):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(input, self.p, True)


class Tripled(nn.Identity):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input * 3


def _subclass(model: nn.Module) -> None:
    model.classifier[2] = Tripled()


def _new_parameters(model: nn.Module) -> None:
    model.classifier[3].__init__(1024, 5)


def _plain_bias(model: nn.Module) -> None:
    conv = model.features[4].block[0][0]
    del conv.bias
    conv.bias = torch.ones(conv.out_channels) * 3


def _end_bias(model: nn.Module) -> None:
    conv = model.features[-1][0]
    del conv.bias
    conv.bias = torch.ones(conv.out_channels)


def _new_buffers(model: nn.Module) -> None:
    norm = model.features[4].block[0][1]
    norm._buffers = {name: value * 2 for name, value in norm._buffers.items()}


def _pool_size(model: nn.Module) -> None:
    model.classifier = nn.Identity()
    model(X)
    model.avgpool.output_size = 2


def _broadcast_bias(model: nn.Module) -> None:
    model.classifier[3].bias = nn.Parameter(torch.ones(1))


def _no_outputs(model: nn.Module) -> None:
    model.classifier[3] = nn.Linear(1024, 0)


def _restrided_bias(model: nn.Module) -> None:
    buffer = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    model.classifier[3].bias.data = buffer[:1000]
    model(X)
    model.classifier[3].bias.data = buffer[::2]


def _list_of_strides(model: nn.Module) -> None:
    conv = model.features[4].block[1][0]
    conv.stride = [2, 2]
    model(X)
    conv.stride[0] = 1


def _function(model: nn.Module) -> None:
    del model.classifier
    model.classifier = lambda x: x * 2


def _shallow_copy(model: nn.Module) -> None:
    block = copy.copy(model.features[5])
    block.use_res_connect = not block.use_res_connect
    model.features[5] = block


def _written_on_the_way(model: nn.Module) -> None:
    def write(*_: object) -> None:
        model.classifier[3].bias.data.fill_(3)

    model.features[0].register_forward_hook(write)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        _subclass, _new_parameters, _plain_bias, _end_bias, _new_buffers, _pool_size, _broadcast_bias, _no_outputs,
        _restrided_bias, _list_of_strides, _function, _shallow_copy, _written_on_the_way,
    ],
)  # fmt: skip
@pytest.mark.parametrize("one_plan", [False, True])
def test_unusual_changes_take_effect(model: nn.Module, one_plan: bool, change: Callable[[nn.Module], None]) -> None:
    if one_plan:
        model.features[1]._forward_hooks.clear()
    for _ in range(3):
        model(X)
    change(model)
    for _ in range(1 if change is _written_on_the_way else 4):  # which writes again on each call
        output, expected = model(X), stock(model)(X)
        assert output.shape == expected.shape
        assert output.numel() == 0 or testing.relative_error(output, expected) <= testing.NET_LIMIT


@torch.no_grad()
@pytest.mark.parametrize("place", ["end", "block", "shared"])
def test_hooks_in_a_new_dictionary_are_seen(model: nn.Module, place: str) -> None:
    if place == "shared":
        linear = nn.Linear(576, 576)
        model.classifier = nn.Sequential(linear, nn.Tanh(), linear)
    model(X)
    layer = {"end": model.classifier[0], "block": model.features[4].block[0][0], "shared": model.classifier[0]}[place]
    layer._forward_hooks = OrderedDict()
    layer.register_forward_hook(lambda _, args, output: output * 2)
    assert testing.relative_error(model(X), stock(model)(X)) <= testing.NET_LIMIT


@torch.no_grad()
@pytest.mark.parametrize("place", ["linear", "norm", "project"])
def test_freed_memory_is_an_error_of_torch(model: nn.Module, place: str) -> None:
    model(X)
    block = model.features[4].block
    tensor = {
        "linear": model.classifier[3].weight, "norm": block[0][1].running_mean, "project": block[-1][0].weight
    }[place]  # fmt: skip
    tensor.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError):
        model(X)
