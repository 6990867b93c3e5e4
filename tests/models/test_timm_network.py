"""timm's network as one plan: what timm, or its user, lets be changed is looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from tests.models.test_whole_network import X, plans


@pytest.fixture
def timm_network() -> nn.Module:
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050").eval()
    testing.randomize_(model, 0, 64)
    return mnv3_fast.accelerate(model, inplace=True)


def _own_head(model: nn.Module) -> None:
    model.forward_head = lambda x: x.mean((2, 3))


def _hook(model: nn.Module) -> None:
    model.bn1.register_forward_hook(lambda m, args, output: output * 2)


def _other_flatten(model: nn.Module) -> None:
    class Doubled(nn.Flatten):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    model.flatten = Doubled()


def _timm_classifier(model: nn.Module) -> None:
    torch.manual_seed(0)
    model.reset_classifier(7)


def _stem_weight(model: nn.Module) -> None:
    model.conv_stem.weight.data.mul_(1.3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "stays_whole"),
    [(_own_head, False), (_hook, False), (_other_flatten, True), (_timm_classifier, True), (_stem_weight, True)],
)
def test_timms_network_is_one_plan_too(
    timm_network: nn.Module, change: Callable[[nn.Module], None], stays_whole: bool
) -> None:
    stock = mnv3_fast.restore(copy.deepcopy(timm_network))
    for _ in range(3):
        before = timm_network(X)
        assert testing.relative_error(before, stock(X)) <= testing.NET_LIMIT
    assert plans(timm_network) == 1
    change(timm_network)
    change(stock)
    for _ in range(6):
        after, expected = timm_network(X), stock(X)
        assert after.shape == expected.shape
        assert after.shape != before.shape or not torch.equal(after, before)
        assert testing.relative_error(after, expected) <= testing.NET_LIMIT
    assert (plans(timm_network) == 1) is stays_whole


class Twice(nn.Flatten):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


TIMM_CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "max pool": lambda m: setattr(m.global_pool, "pool", nn.AdaptiveMaxPool2d(1)),
    "pool of the conv_head": lambda m: setattr(m.conv_head, "stride", (2, 2)),
    "padding of the conv_head": lambda m: (setattr(m.conv_head, "padding", (1, 1)), setattr(m, "classifier", Twice())),
    "flatten": lambda m: setattr(m, "flatten", Twice()),
    "another stage": lambda m: m.blocks.append(nn.ReLU()),
    "drop path": lambda m: m.blocks[1][1].__dict__["_modules"].update(drop_path=nn.Tanh().eval()),
}


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("change", TIMM_CHANGES)
def test_what_timm_lets_be_changed(timm_network: nn.Module, change: str, packed: bool) -> None:
    for _ in range(4 if packed else 0):
        timm_network(X)
    TIMM_CHANGES[change](timm_network)
    stock = mnv3_fast.restore(copy.deepcopy(timm_network))
    for _ in range(5):
        ours, theirs = timm_network(X), stock(X)
        assert ours.shape == theirs.shape
        assert testing.relative_error(ours, theirs) <= testing.NET_LIMIT


@torch.no_grad()
def test_a_drop_path_in_training_mode_drops() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050", drop_path_rate=0.9).eval()
    fast = mnv3_fast.accelerate(model)
    for _ in range(4):
        fast(X)
    assert plans(fast) == 1
    for network in (model, fast):
        for module in network.modules():
            if type(module).__name__ == "DropPath":
                module.train()
    for seed in range(3):
        outputs = []
        for network in (model, fast):
            torch.manual_seed(seed)
            outputs.append(network(X))
        assert testing.relative_error(outputs[1], outputs[0]) <= testing.NET_LIMIT
