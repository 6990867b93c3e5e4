"""mmpretrain's backbone, by doubles of its classes, in which something is not as it was: nothing is silently different."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import mnv3_fast
from mnv3_fast import testing
from tests.models import mmpretrain_doubles as doubles
from tests.models.common import assert_same
from tests.models.test_mmpretrain import X, backbone, fallbacks


def _set(path: str, name: str, value: Any) -> Callable[[nn.Module], None]:
    return lambda model: setattr(model.get_submodule(path), name, value)


class Elsewhere(nn.Conv2d):
    """What another conv_cfg gives."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).roll(1, 1)


def _drop_path(module: nn.Module) -> Callable[[nn.Module], None]:
    return lambda model: setattr(model.layer3, "drop_path", module)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def _renorm(model: nn.Module) -> None:
    model.layer4.depthwise_conv.bn = nn.GroupNorm(4, model.layer4.depthwise_conv.conv.out_channels)


def _norm_of_squeeze(model: nn.Module) -> None:
    model.layer4.se.conv1.add_module("bn", nn.BatchNorm2d(model.layer4.se.conv1.conv.out_channels))
    model.layer4.se.conv1.with_norm, model.layer4.se.conv1.norm_name = True, "bn"
    model.layer4.se.conv1.bn.running_var.fill_(0.1)
    model.eval()


CHANGES: dict[str, tuple[Callable[[nn.Module], Any], str, str]] = {
    "norm_cfg": (_renorm, "layer4", "norm GroupNorm cannot be folded into a convolution"),
    "conv_cfg": (
        lambda m: setattr(m.layer4.expand_conv.conv, "__class__", Elsewhere),
        "layer4",
        "ConvModule has a tests.models.test_mmpretrain_changes.Elsewhere, not an nn.Conv2d",
    ),
    "order": (
        _set("layer4.expand_conv", "order", ("conv", "act", "norm")),
        "layer4",
        "ConvModule with order ('conv', 'act', 'norm') has no kernel",
    ),
    "efficient_conv_bn_eval": (
        _set("layer0", "efficient_conv_bn_eval_forward", max),
        "layer0",
        "ConvModule with efficient_conv_bn_eval is left to mmcv",
    ),
    "norm in squeeze-excite": (_norm_of_squeeze, "layer4", "squeeze-excite with a norm has no kernel"),
    "gate": (
        _set("layer4.se.conv2.activate", "bias", 2),
        "layer4",
        "HSigmoid of bias 2, divisor 6, from 0 to 1 has no kernel (clip(x * slope + 1/2, 0, 1) has)",
    ),
    "gate's divisor": (
        _set("layer4.se.conv2.activate", "divisor", 5),
        "layer4",
        "HSigmoid of bias 3, divisor 5, from 0 to 1 has no kernel (clip(x * slope + 1/2, 0, 1) has)",
    ),
    "gate's limit": (
        _set("layer4.se.conv2.activate", "min_value", 0.5),
        "layer4",
        "HSigmoid of bias 3, divisor 6, from 0.5 to 1 has no kernel (clip(x * slope + 1/2, 0, 1) has)",
    ),
    "no gate": (_set("layer4.se.conv2", "with_activation", False), "layer4", "without a gate has no kernel"),
    "activation": (
        _set("layer2.depthwise_conv", "activate", nn.GELU()),
        "layer2",
        "activation GELU has no kernel (relu, hardswish and relu6 have)",
    ),
    "plugin": (_drop_path(Twice()), "layer3", "drop_path is a Twice, expected mmcv's DropPath"),
    "drop path": (_drop_path(doubles.DropPath(1e-9)), "layer3", "drop_path is in training mode"),
    "hook": (
        lambda m: m.layer5.se.conv1.register_forward_hook(lambda module, args, output: output * 2),
        "layer5",
        "a module inside has a hook",
    ),
    "parametrization": (
        lambda m: parametrizations.weight_norm(m.layer5.linear_conv.conv).parametrizations.weight.original0.mul_(2),
        "layer5",
        "ConvModule has a torch.nn.utils.parametrize.ParametrizedConv2d, not an nn.Conv2d",
    ),
    "forward": (
        lambda m: setattr(m.layer5.depthwise_conv, "forward", lambda x: nn.Module.__call__(m.layer5.se, x)),
        "layer5",
        "a module inside has a forward of its own",
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_what_has_no_kernel_runs_on_its_own_forward(change: str, packed: bool) -> None:
    """Changed after it was accelerated, before or after its weights were packed."""
    make, path, reason = CHANGES[change]
    model = backbone()
    fast = mnv3_fast.accelerate(copy.deepcopy(model), inplace=True)
    for _ in range(4 if packed else 0):
        fast(X)
    expected = model(X)
    for network in (model, fast):
        make(network)
    if change != "efficient_conv_bn_eval":  # which computes the same in another order
        after = model(X)
        assert change == "drop path" or testing.relative_error(after[-1], expected[-1]) > 1e-4
        for _ in range(4):
            assert_same(fast(X), after)
    found = fallbacks(fast, None)
    assert list(found) == [path]
    assert str(found[path]).endswith(reason)


@torch.no_grad()
@pytest.mark.parametrize("change", [name for name in CHANGES if name not in ("conv_cfg", "forward", "drop path")])
def test_what_has_no_kernel_before_it_is_accelerated(change: str) -> None:
    make, path, reason = CHANGES[change]
    model = backbone()
    make(model)
    fast = mnv3_fast.accelerate(model)
    if change != "efficient_conv_bn_eval":
        assert_same(fast(X), model(X))
    found = fallbacks(fast)
    assert str(found[path]).endswith(reason)
    assert mnv3_fast.explain(fast).fused > 0
    refused = {"hook": "a hook", "parametrization": reason}.get(change, reason)
    with pytest.raises(ValueError, match="freeze: nothing in MobileNetV3 can be frozen") as raised:
        mnv3_fast.freeze(model)
    assert refused in str(raised.value)


LATER: dict[str, Callable[[nn.Module], Any]] = {
    "slope of a gate": lambda m: _gate(m.layer4.se.conv2.activate, 1.0, 2.0),
    "no squeeze-excite": _set("layer4", "with_se", False),
    "no shortcut": _set("layer5", "with_res_shortcut", False),
    "no norm": _set("layer3.linear_conv", "with_norm", False),
    "no activation": _set("layer3.expand_conv", "with_activation", False),
    "a folded norm": _set("layer2.expand_conv", "bn", nn.Identity()),
    "outputs": lambda m: setattr(m, "out_indices", [2, 12]),
    "layers": lambda m: (m.layers.remove("layer3"), setattr(m, "out_indices", (11,))),
    "a block": lambda m: setattr(m, "layer6", copy.deepcopy(m.layer5)),
    "mmcv's hard-swish": lambda m: setattr(m.layer1.depthwise_conv, "activate", doubles.HSwish()),
    "a weight": lambda m: m.layer7.linear_conv.conv.weight.mul_(1.5),
}


def _gate(module: nn.Module, bias: float, divisor: float) -> None:
    module.bias, module.divisor = bias, divisor


@torch.no_grad()
@pytest.mark.parametrize("change", LATER)
def test_what_has_a_kernel_takes_effect_later(change: str) -> None:
    model = backbone()
    fast = mnv3_fast.accelerate(copy.deepcopy(model), inplace=True)
    for _ in range(4):
        before = fast(X)
    for network in (model, fast):
        LATER[change](network)
    for _ in range(4):
        after = fast(X)
        assert_same(after, model(X))
    assert after[0].shape != before[0].shape or testing.relative_error(after[-1], before[-1]) > 1e-4
    assert fallbacks(fast) == {}
