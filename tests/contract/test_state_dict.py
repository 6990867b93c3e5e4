"""Row "state_dict": the same keys, shapes, dtypes and order; both ways, strict, assigned; nothing of ours inside."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from tests.contract.common import X, accelerated, assert_same_as_stock, fresh

BUILDERS = ("mobilenet_v3_large", "mobilenet_v3_small")


@pytest.mark.parametrize("name", BUILDERS)
def test_keys_shapes_dtypes_and_metadata(name: str) -> None:
    ours, theirs = (getattr(library, name)().state_dict() for library in (mnv3_fast, torchvision.models))
    assert [(k, v.shape, v.dtype) for k, v in ours.items()] == [(k, v.shape, v.dtype) for k, v in theirs.items()]
    assert ours._metadata == theirs._metadata
    assert ours["features.0.1.num_batches_tracked"].dtype is torch.int64


def test_running_adds_nothing() -> None:
    model = accelerated()
    before = list(model.state_dict())
    with torch.no_grad():
        model(X)
    assert list(model.state_dict()) == before == list(fresh().state_dict())
    assert [n for n, _ in model.named_buffers()] == [n for n, _ in fresh().named_buffers()]


@pytest.mark.parametrize("assign", [False, True])
def test_loads_torchvisions_and_torchvision_loads_ours(assign: bool, tmp_path: Path) -> None:
    theirs, ours = fresh(), mnv3_fast.mobilenet_v3_small().eval()
    with torch.no_grad():
        ours(X)  # has packed weights, which must not survive
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    loaded = torch.load(tmp_path / "theirs.pt", weights_only=True)
    assert str(ours.load_state_dict(loaded, strict=True, assign=assign)) == "<All keys matched successfully>"
    with torch.no_grad():
        assert testing.relative_error(ours(X), theirs(X)) <= testing.NET_LIMIT
    other = torchvision.models.mobilenet_v3_small().eval()
    other.load_state_dict(ours.state_dict(), strict=True, assign=assign)
    for key, value in theirs.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize("assign", [False, True])
def test_a_second_state_takes_effect(assign: bool) -> None:
    model = accelerated()
    with torch.no_grad():
        before = model(X)
    state = {key: value * 1.01 if value.is_floating_point() else value for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    with torch.no_grad():
        assert not torch.equal(model(X), before)
    assert_same_as_stock(model)


def test_strictness_is_torchs() -> None:
    state = fresh().state_dict()
    state["extra"] = state.pop("features.0.0.weight")
    messages = []
    for model in (fresh(), accelerated()):
        with pytest.raises(RuntimeError) as caught:
            model.load_state_dict(state)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    result = accelerated().load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["features.0.0.weight"], ["extra"])


def test_a_part_of_the_network() -> None:
    """Blocks and stems take and give their own state, as torchvision's."""
    source, model = fresh(), accelerated()
    with torch.no_grad():
        model(X)
        for parameter in source.features[4].parameters():
            parameter.mul_(1.5)
    model.features[4].load_state_dict(source.features[4].state_dict())
    assert list(model.features[4].state_dict()) == list(source.features[4].state_dict())
    with torch.no_grad():
        assert testing.relative_error(model(X), source(X)) <= testing.NET_LIMIT


def test_state_dict_hooks_run() -> None:
    model = accelerated()
    calls: list[str] = []
    model.features[1].register_load_state_dict_pre_hook(lambda *_: calls.append("before"))
    model.features[1].register_load_state_dict_post_hook(lambda *_: calls.append("after"))
    model.register_state_dict_post_hook(lambda *_: calls.append("gave"))
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert calls == ["gave", "before", "after"]


def test_swapped_tensors() -> None:
    """``torch.__future__.set_swap_module_params_on_conversion``: tensors swap their insides with new ones."""
    model = accelerated()
    with torch.no_grad():
        before = model(X)
    state = {key: value * 1.01 if value.is_floating_point() else value for key, value in model.state_dict().items()}
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.load_state_dict(state)
        with torch.no_grad():
            assert not torch.equal(model(X), before)
        assert_same_as_stock(model)
        model.double()
        assert model(X.double()).dtype is torch.float64
        model.float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert_same_as_stock(model)


def test_a_network_of_ones_own() -> None:
    net = nn.Sequential(accelerated().features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    stock = nn.Sequential(fresh().features, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert list(net.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(net.state_dict())
