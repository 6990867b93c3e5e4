"""timm's MobileNetV3 frozen, in each form that it can be built in, against timm's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import assert_same, count_ops
from tests.models.timm_forms import FEATURES, FORMS, SMALL, form, images, intermediates, kinds_of_images, outputs

timm = pytest.importorskip("timm")
POOLS_OF_TORCH = tuple(f"pool {kind}" for kind in ("max", "avgmax", "catavgmax", "fastmax"))


@torch.no_grad()
@pytest.mark.parametrize("which", FORMS)
def test_frozen_networks(which: str) -> None:
    model = form(which)
    engine = mnv3_fast.freeze(model)
    assert isinstance(engine, mnv3_fast.Engine)
    for size, channels_last in kinds_of_images(which):
        x = images(model, size, channels_last)
        ours, theirs = (outputs(network, x) | intermediates(network, x) for network in (engine, model))
        for name, expected in theirs.items():
            assert_same(ours[name], expected, strides=not channels_last)
    assert engine.num_classes == model.num_classes
    assert timm.data.resolve_model_data_config(engine) == timm.data.resolve_model_data_config(model)
    names = [type(module).__name__ for module in engine.rest.modules()]
    assert ("SelectAdaptivePool2d" in names) is (which in ("map of conv_head", *POOLS_OF_TORCH))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, "Engine: input must be a Tensor, got NoneType"),
        (torch.ones(2, 5, 3, 3), ValueError, r"Engine: input must be \[N, \d+, H, W\], got \[2, 5, 3, 3\]"),
    ],
)
def test_a_head_says_what_came(x: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mnv3_fast.freeze(form("stock")).forward_head(x)


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
    for size, channels_last in kinds_of_images(which):
        x = images(model, size, channels_last)
        for same in (engine, copy.deepcopy(engine)):
            assert_same(same(x), model(x), strides=not channels_last)
    counts = count_ops(lambda: engine(x))
    assert counts["mnv3_fast::run_plan"] == len(model.feature_info.out_indices)
    assert not [name for name in counts if "aten::" in name and ("conv" in name or "norm" in name)]


@torch.no_grad()
def test_halves_in_captured_graphs() -> None:
    model = form("stock")
    engine, x = mnv3_fast.freeze(model), images(model)
    compiled = torch.compile(engine.forward_features, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="call this method once before a capture"):
        compiled(x)
    engine.forward_features(x)
    torch._dynamo.reset()
    assert_same(compiled(x), model.forward_features(x))


@torch.no_grad()
def test_wrong_arguments_of_intermediates() -> None:
    engine = mnv3_fast.freeze(form("stock"))
    x = images(form("stock"))
    for keywords, message in (
        ({"indices": 6}, "indices must be from 1 to 5, got 6"),
        ({"indices": [5]}, r"indices must be from 0 to 4, got \[5\]"),
        ({"output_fmt": "NLC"}, "output_fmt must be NCHW, got NLC"),
        ({"stop_early": True}, "stop_early is for intermediates_only"),
    ):
        with pytest.raises(ValueError, match=f"forward_intermediates: {message}"):
            engine.forward_intermediates(x, **keywords)


@torch.no_grad()
def test_timms_getter_of_intermediates() -> None:
    """It wraps a network, prunes it and calls that one method."""
    model = timm.create_model(SMALL, features_only=True, feature_cls="getter", out_indices=(0, 2, 3))
    testing.randomize_(model, 0, 64)
    x = testing.parity_images(2, 75, 96)
    for convert in (mnv3_fast.accelerate, mnv3_fast.freeze):
        assert_same(convert(model)(x), model(x))


def test_features_by_hooks_are_refused() -> None:
    with pytest.raises(ValueError, match="its maps are taken by hooks inside of blocks"):
        mnv3_fast.freeze(form("expansion", features_only=True))
