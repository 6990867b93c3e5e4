"""timm's MobileNetV3 in each form that it can be built in and each method that it has, against timm's own."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import count_ops

timm = pytest.importorskip("timm")

SMALL = "mobilenetv3_small_050"
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "stock": (SMALL, {}),
    "no classifier": (SMALL, {"num_classes": 0}),
    "map of conv_head": (SMALL, {"num_classes": 0, "global_pool": ""}),
    **{f"pool {kind}": (SMALL, {"global_pool": kind}) for kind in ("max", "avgmax", "catavgmax", "fast", "fastmax")},
    "grey": (SMALL, {"in_chans": 1}),
    "four channels": (SMALL, {"in_chans": 4}),
    "drop rates": (SMALL, {"drop_rate": 0.3, "drop_path_rate": 0.3}),
    "rw": ("mobilenetv3_rw", {}),
    "150d": ("mobilenetv3_large_150d", {"num_classes": 10}),
    "minimal": ("tf_mobilenetv3_small_minimal_100", {"pad_type": ""}),
}
FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "all": (SMALL, {}),
    "last": (SMALL, {"out_indices": (4,)}),
    "some": (SMALL, {"out_indices": (1, 3)}),
    "negative": (SMALL, {"out_indices": (-2, -1)}),
    "stride 8": (SMALL, {"output_stride": 8}),
    "stride 16": (SMALL, {"output_stride": 16, "in_chans": 4}),
    "expansion": (SMALL, {"feature_location": "expansion", "out_indices": (1, 2, 3)}),
    "rw": ("mobilenetv3_rw", {}),
}
SIZES = ((64, 64), (65, 65), (75, 96))


@functools.cache
def built(name: str, options: tuple[tuple[str, Any], ...]) -> nn.Module:
    """A parity model; not to be changed."""
    keywords = dict(options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, **keywords)
    size = 128 if name.endswith("150d") else 64  # the deep one's last layers need more pixels for their statistics
    return testing.randomize_(model, 0, size, channels=keywords.get("in_chans", 3))


def form(which: str, **more: Any) -> nn.Module:
    name, options = (FEATURES if more else FORMS)[which]
    return built(name, tuple((options | more).items()))


def images(model: nn.Module, size: tuple[int, int] = (64, 64), channels_last: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, model.conv_stem.in_channels, *size, generator=generator)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output of any structure."""
    output = list(output.values()) if isinstance(output, dict) else output
    return [output] if isinstance(output, Tensor) else [tensor for item in output for tensor in flat(item)]


def assert_same(ours: Any, theirs: Any, strides: bool = True) -> None:
    """Structure, shapes, strides and values."""
    assert type(ours) is type(theirs)
    found, wanted = flat(ours), flat(theirs)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.stride() == b.stride() or not strides
        testing.assert_net_equal(a, b)


def outputs(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """What each method gives; features for the head come from the method before it."""
    features = model.forward_features(x)
    return {
        "forward": model(x),
        "forward_features": features,
        "forward_head": model.forward_head(features),
        "pre_logits": model.forward_head(features, pre_logits=True),
    }


def intermediates(model: nn.Module, x: Tensor) -> dict[str, Any]:
    return {
        "all": model.forward_intermediates(x),
        "last two": model.forward_intermediates(x, indices=2, intermediates_only=True),
        "early": model.forward_intermediates(x, indices=[0, 2], stop_early=True, intermediates_only=True),
    }


@torch.no_grad()
@pytest.mark.parametrize("which", FORMS)
def test_every_method_of_an_accelerated_network(which: str) -> None:
    model = form(which)
    fast = mnv3_fast.accelerate(model)
    for size in SIZES if which == "stock" else SIZES[-1:]:
        for channels_last in (False, True):
            x = images(model, size, channels_last)
            assert testing.relative_error(model(x)[:1], model(x)[1:]) > 0.1
            theirs = outputs(model, x) | intermediates(model, x)
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
    for size in SIZES:
        for channels_last in (False, True):
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
        (_stem_activation, "activation GELU has no kernel (relu and hardswish have)"),
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
@pytest.mark.parametrize("which", FORMS)
def test_frozen_networks(which: str) -> None:
    model = form(which)
    engine = mnv3_fast.freeze(model)
    assert isinstance(engine, mnv3_fast.Engine)
    for size in SIZES if which == "stock" else SIZES[-1:]:
        for channels_last in (False, True):
            x = images(model, size, channels_last)
            ours, theirs = outputs(engine, x), outputs(model, x)
            for name, expected in theirs.items():
                assert_same(ours[name], expected, strides=not channels_last)
    names = [type(module).__name__ for module in engine.rest.modules()]
    assert ("SelectAdaptivePool2d" in names) is (which in ("map of conv_head", *POOLS_OF_TORCH))


@torch.no_grad()
def test_halves_of_an_engine_follow_its_plan() -> None:
    """They are cut out of the plan, so they must go when it does, and not be saved with it."""
    model = form("stock")
    engine = mnv3_fast.freeze(model)
    x = images(model)
    before = outputs(engine, x)
    other = copy.deepcopy(model)
    other.conv_stem.weight.mul_(1.5)
    other.conv_head.weight.mul_(1.5)
    for copied in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine)), engine):
        assert_same(outputs(copied, x), before)
        copied.load_state_dict(mnv3_fast.freeze(other).state_dict())
        after, expected = outputs(copied, x), outputs(other, x)
        for name in before:
            assert_same(after[name], expected[name])
            assert testing.relative_error(after[name], before[name]) > 1e-2
    assert len(pickle.dumps(engine)) < 1.1 * engine.plan.numel()


@torch.no_grad()
@pytest.mark.parametrize("which", [name for name in FEATURES if name != "expansion"])
def test_frozen_features(which: str) -> None:
    model = form(which, features_only=True)
    engine = mnv3_fast.freeze(model)
    assert isinstance(engine, mnv3_fast.EngineChain)
    assert engine.feature_info.channels() == model.feature_info.channels()
    for size in SIZES:
        for channels_last in (False, True):
            x = images(model, size, channels_last)
            for same in (engine, copy.deepcopy(engine)):
                assert_same(same(x), model(x), strides=not channels_last)
    counts = count_ops(lambda: engine(x))
    assert counts["mnv3_fast::run_plan"] == len(model.feature_info.out_indices)
    assert not [name for name in counts if "aten::" in name and ("conv" in name or "norm" in name)]


def test_features_by_hooks_are_refused() -> None:
    with pytest.raises(ValueError, match="its maps are taken by hooks inside of blocks"):
        mnv3_fast.freeze(form("expansion", features_only=True))


POOLS_OF_TORCH = tuple(f"pool {kind}" for kind in ("max", "avgmax", "catavgmax", "fastmax"))


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
