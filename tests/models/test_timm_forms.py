"""timm's MobileNetV3 in each form that it can be built in and each method that it has, against timm's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import assert_same, count_ops
from tests.models.timm_forms import FEATURES, FORMS, SMALL, built, form, images, intermediates, kinds_of_images, outputs


@torch.no_grad()
@pytest.mark.parametrize("which", FORMS)
def test_every_method_of_an_accelerated_network(which: str) -> None:
    model = form(which)
    fast = mnv3_fast.accelerate(model)
    for size, channels_last in kinds_of_images(which):
        x = images(model, size, channels_last)
        theirs = outputs(model, x) | intermediates(model, x)
        assert testing.relative_error(theirs["forward"][:1], theirs["forward"][1:]) > 0.1
        for _ in range(3):  # part by part first, then as one plan
            ours = outputs(fast, x) | intermediates(fast, x)
            for name, expected in theirs.items():
                assert_same(ours[name], expected)
    parts = 1 + sum(len(stage) for stage in model.blocks)
    counts = count_ops(lambda: fast(x))
    assert counts["mnv3_fast::run_plan"] == 1
    assert "aten::batch_norm" not in counts
    for run in (fast.forward_features, fast.forward_intermediates):
        counts = count_ops(lambda run=run: run(x))
        assert counts["mnv3_fast::run_plan"] == parts
        assert not [name for name in counts if "conv" in name or "batch_norm" in name]
    explanation = mnv3_fast.explain(fast, x)
    assert not explanation.fallbacks
    assert explanation.fused == parts
    assert list(explanation.networks) == [""]


@torch.no_grad()
@pytest.mark.parametrize("which", FEATURES)
def test_accelerated_features(which: str) -> None:
    model = form(which, features_only=True)
    fast = mnv3_fast.accelerate(model)
    for size, channels_last in kinds_of_images(which):
        x = images(model, size, channels_last)
        assert_same(fast(x), model(x))
    explanation = mnv3_fast.explain(fast, x)
    parts = 1 + sum(len(stage) for stage in model.blocks)
    if which == "expansion":  # timm takes these maps by hooks inside of blocks, which must run
        assert {row.reason for row in explanation.fallbacks} == {"a module inside has a hook"}
        assert len(explanation.fallbacks) == 3
    else:
        assert explanation.fallbacks == []
    assert explanation.fused + len(explanation.fallbacks) == parts
    assert explanation.rows[0].path == "conv_stem"
    assert count_ops(lambda: fast(x))["mnv3_fast::run_plan"] == explanation.fused


def _wrong_stem_norm(model: nn.Module) -> None:
    model.bn1 = nn.GroupNorm(2, 16)


def _stem_activation(model: nn.Module) -> None:
    model.act1 = nn.GELU()


def _stem_hook(model: nn.Module) -> None:
    model.act1.register_forward_hook(lambda m, args, output: output * 2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_wrong_stem_norm, "norm GroupNorm cannot be folded into a convolution"),
        (_stem_activation, "activation GELU has no kernel (relu, hardswish and relu6 have)"),
        (_stem_hook, "a module inside has a hook"),
    ],
)
def test_a_changed_stem_of_features_runs_on_torch(change: Any, reason: str) -> None:
    model = copy.deepcopy(form("all", features_only=True))
    fast = mnv3_fast.accelerate(model)
    x = images(model)
    before = fast(x)
    for network in (model, fast):
        change(network)
    after = fast(x)
    assert_same(after, model(x))
    assert testing.relative_error(after[0], before[0]) > 1e-2
    assert [(row.path, row.reason) for row in mnv3_fast.explain(fast, x).fallbacks] == [("conv_stem", reason)]


@pytest.mark.parametrize("which", ["all", "expansion"])
def test_features_keep_training_copies_and_keys(which: str) -> None:
    model = copy.deepcopy(form(which, features_only=True))
    keys = list(model.state_dict())
    fast = mnv3_fast.accelerate(model)
    assert list(fast.state_dict()) == keys
    x = images(model)
    with torch.no_grad():
        expected = fast(x)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)) if which == "all" else fast):
            assert_same(other(x), expected)
        assert_same(fast.train().eval()(x), expected)
    losses = []
    for network in (fast.train(), copy.deepcopy(model).train()):
        torch.manual_seed(0)
        loss = sum(feature.square().mean() for feature in network(x))
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]  # training is torch's own
    mnv3_fast.restore(fast.eval())
    assert type(fast) is type(model)
    assert {type(module) for module in fast.modules()} == {type(module) for module in model.modules()}


@torch.no_grad()
def test_checkpointing_of_features() -> None:
    model = copy.deepcopy(form("all", features_only=True))
    fast = mnv3_fast.accelerate(model)
    fast.set_grad_checkpointing()
    x = images(model)
    with torch.enable_grad():
        assert_same([feature.detach() for feature in fast(x)], model(x))


@torch.no_grad()
def test_a_pruned_network() -> None:
    """timm cuts the stages behind the last map that is wanted, and the head with them."""
    model = copy.deepcopy(form("stock"))
    model.prune_intermediate_layers([0, 2])
    assert len(model.blocks) == 2
    x = images(model)
    for convert in (mnv3_fast.accelerate, mnv3_fast.freeze):
        fast = convert(model)
        for _ in range(3):
            assert_same(fast(x), model(x))
    model.prune_intermediate_layers([0])  # the stem is left
    assert_same(mnv3_fast.freeze(model)(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize("pool", ["avg", "fast"])
def test_pools_that_are_changed_take_effect(pool: str) -> None:
    model = copy.deepcopy(built(SMALL, (("global_pool", pool),)))
    fast = mnv3_fast.accelerate(model)
    x = images(model)
    for _ in range(3):
        before = fast(x)
    for network in (model, fast):
        network.global_pool.pool = nn.AdaptiveMaxPool2d(1)
    for _ in range(5):
        assert_same(fast(x), model(x))
    assert testing.relative_error(fast(x), before) > 1e-2
