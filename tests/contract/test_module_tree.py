"""Row "module tree": the same names, classes, repr; what a user puts in takes effect."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from tests.contract.common import ROWS, X, accelerated, assert_same_as_stock, fallbacks, fresh
from tests.models.common import cached_parity_model


@pytest.mark.parametrize("net", ["large", "small"])
def test_the_tree_is_torchvisions(net: str) -> None:
    model = cached_parity_model(net)
    ours = mnv3_fast.accelerate(model)
    assert repr(ours) == repr(model)
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in model.named_modules()]
    assert [n for n, _ in ours.named_children()] == [n for n, _ in model.named_children()]
    assert all(a is b for a, b in zip(ours.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(ours.buffers(), model.buffers(), strict=True))
    for mine, theirs in zip(ours.modules(), model.modules(), strict=True):
        assert isinstance(mine, type(theirs))
        assert type(mine).__name__ == type(theirs).__name__
    census = [sum(isinstance(m, c) for m in ours.modules()) for c in (nn.Conv2d, nn.BatchNorm2d, nn.Hardswish)]
    assert census == ([62, 46, 21] if net == "large" else [52, 34, 19])


def test_attributes_that_detectors_read() -> None:
    ours, theirs = accelerated(), fresh()
    for mine, other in zip(ours.features, theirs.features, strict=True):
        assert mine.out_channels == other.out_channels
        assert getattr(mine, "_is_cn", None) == getattr(other, "_is_cn", None)
        assert getattr(mine, "use_res_connect", None) == getattr(other, "use_res_connect", None)
    assert len(ours.features[4].block) == 4
    assert isinstance(ours.features[4].block[2], torchvision.ops.SqueezeExcitation)


@torch.no_grad()
def test_a_block_taken_apart_as_ssdlite_does() -> None:
    """``backbone[c4].block[0]`` and ``block[1:]`` run on their own, each part fused."""
    model, stock = accelerated(), fresh()
    y, expected = (m.features[:4](X) for m in (model, stock))
    for part in (slice(0, 1), slice(1, None)):
        y, expected = model.features[4].block[part](y), stock.features[4].block[part](expected)
        assert testing.relative_error(y, expected) <= testing.NET_LIMIT


REPLACED: dict[str, Callable[[nn.Module], object]] = {
    "classifier[3]": lambda m: m.classifier.__setitem__(3, nn.Linear(1024, 5)),
    "classifier": lambda m: setattr(m, "classifier", nn.Linear(576, 7)),
    "classifier of one's own": lambda m: setattr(m, "classifier", nn.Sequential(nn.LayerNorm(576), nn.Linear(576, 3))),
    "classifier dropped": lambda m: setattr(m, "classifier", nn.Identity()),
    "one block": lambda m: m.features.__setitem__(3, copy.deepcopy(cached_parity_model("small", 9).features[3])),
    "a convolution": lambda m: m.features[5].block[0].__setitem__(0, nn.Conv2d(40, 240, 1, bias=True)),
    "a norm": lambda m: m.features[5].block[1].__setitem__(1, nn.BatchNorm2d(240, eps=0.1).eval()),
    "an activation": lambda m: m.features[5].block[0].__setitem__(2, nn.ReLU()),
    "a gate": lambda m: setattr(m.features[5].block[2], "scale_activation", nn.Sigmoid()),
    "no squeeze-excite": lambda m: m.features[5].block.__delitem__(2),
}


@torch.no_grad()
@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("what", REPLACED)
def test_replaced_modules_take_effect(what: str, ran_before: bool) -> None:
    model = accelerated()
    before = [model(X) for _ in range(3)][-1] if ran_before else None
    torch.manual_seed(0)
    REPLACED[what](model)
    after = model(X)
    assert before is None or before.shape != after.shape or not torch.equal(before, after)
    assert_same_as_stock(model)
    if what == "one block":
        assert all(path.startswith("features.3") for path in fallbacks(model))  # torchvision's own
    elif what not in ("classifier of one's own", "classifier dropped"):
        assert fallbacks(model) == []


@torch.no_grad()
def test_a_change_after_one_that_does_not_matter_is_seen() -> None:
    """The dictionaries of modules are looked through anew where one has changed, and watched from then on."""
    model = accelerated()
    convolution, norm = model.features[3].block[0][0], model.features[3].block[0][1]
    for _ in range(4):
        model(X)
    for value in range(2):
        convolution.note = norm.note = value  # nothing that is computed depends on it
        assert_same_as_stock(model)
        norm.eps = 0.1 + value
        assert_same_as_stock(model)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 4])
def test_a_stem_for_other_images(channels: int) -> None:
    model = accelerated()
    model(X)
    model.features[0][0] = nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False)
    x = torch.randn(2, channels, 64, 64)
    assert_same_as_stock(model, x)
    assert fallbacks(model, x) == []


@torch.no_grad()
def test_layers_added_and_removed() -> None:
    model = accelerated()
    model(X)
    model.features.insert(4, nn.Dropout2d(0.5).eval())
    model.classifier.append(nn.Softmax(1))
    assert_same_as_stock(model)
    del model.features[4], model.classifier[-1]
    assert_same_as_stock(model)
    assert len(mnv3_fast.explain(model, X).rows) == ROWS


@torch.no_grad()
def test_restore_gives_the_classes_back() -> None:
    model = fresh()
    classes, expected = [type(module) for module in model.modules()], model(X)
    assert mnv3_fast.accelerate(model, inplace=True) is model
    model(X)
    assert mnv3_fast.restore(model) is model
    assert [type(module) for module in model.modules()] == classes
    assert not [name for module in model.modules() for name in vars(module) if name == "_fusion"]
    assert torch.equal(model(X), expected)
