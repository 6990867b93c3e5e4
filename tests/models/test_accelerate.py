"""accelerate, restore and the proof that it is our kernels that ran."""

from __future__ import annotations

import copy
import io
import logging
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import cached_parity_model, count_ops

X = testing.parity_images(2, 64, seed=1)


@pytest.fixture
def model() -> nn.Module:
    return copy.deepcopy(cached_parity_model("small"))


@torch.no_grad()
@pytest.mark.parametrize(("net", "blocks"), [("large", 15), ("small", 11)])
def test_no_aten_convolution_runs(net: str, blocks: int) -> None:
    accelerated = mnv3_fast.accelerate(cached_parity_model(net))
    stem_and_end = 2
    for plans in (blocks + stem_and_end, 1, 1):  # part by part first, then the network as one
        ran = {name: n for name, n in count_ops(lambda: accelerated(X)).items() if "::" in name}
        assert ran["mnv3_fast::run_plan"] == plans
        assert not [name for name in ran if "conv" in name or "batch_norm" in name or "addmm" in name]
    assert ran == {"mnv3_fast::run_plan": 1}
    explained = mnv3_fast.explain(accelerated, X)
    assert not explained.fallbacks
    assert list(explained.networks) == [""]


@torch.no_grad()
def test_frozen_is_one_op_without_allocation() -> None:
    engine = mnv3_fast.freeze(cached_parity_model("large"))
    engine(X)
    counts = count_ops(lambda: engine(X))
    assert {name: n for name, n in counts.items() if "::" in name} == {"mnv3_fast::run_plan": 1}
    with torch.profiler.profile(profile_memory=True) as profile:
        engine(X)
    allocated = [e.self_cpu_memory_usage for e in profile.key_averages() if e.self_cpu_memory_usage > 0]
    assert sum(allocated) == 2 * 1000 * 4  # the output alone


@torch.no_grad()
def test_one_hook_makes_one_block_fall_back(model: nn.Module) -> None:
    accelerated = mnv3_fast.accelerate(model)
    calls: list[int] = []
    handle = accelerated.features[4].block[1][0].register_forward_hook(lambda *_: calls.append(1))
    expected = model(X)
    assert testing.relative_error(accelerated(X), expected) <= testing.NET_LIMIT
    assert calls == [1]
    rows = mnv3_fast.explain(accelerated, X).fallbacks
    assert [(row.path, row.reason) for row in rows] == [("features.4", "a module inside has a hook")]
    assert mnv3_fast.explain(accelerated, X).networks == {}
    assert count_ops(lambda: accelerated(X))["mnv3_fast::run_plan"] == 12
    handle.remove()
    assert not mnv3_fast.explain(accelerated, X).fallbacks
    mnv3_fast.refresh(accelerated)
    assert count_ops(lambda: accelerated(X))["mnv3_fast::run_plan"] == 13


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", ["pre hook", "parametrization", "pruning", "forward", "norm", "training norm", "global hook"]
)
def test_what_a_user_did_is_not_lost(model: nn.Module, kind: str) -> None:
    accelerated = mnv3_fast.accelerate(model, inplace=True)
    block = accelerated.features[5]
    conv, norm = block.block[0][0], block.block[0][1]
    handle = None
    if kind == "pre hook":
        conv.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    elif kind == "parametrization":
        parametrize.register_parametrization(conv, "weight", nn.Softplus())
    elif kind == "pruning":
        prune.l1_unstructured(conv, "weight", 0.5)
    elif kind == "forward":
        conv.forward = lambda x: nn.functional.conv2d(x, conv.weight) * 2
    elif kind == "norm":
        block.block[0][1] = nn.GroupNorm(4, norm.num_features)
    elif kind == "training norm":
        norm.train()
    else:
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        ours = accelerated(X)
        fallbacks = mnv3_fast.explain(accelerated, X).fallbacks
    finally:
        if handle is not None:
            handle.remove()
    if kind == "training norm":
        norm.eval()
        norm.running_mean.copy_(model.features[5].block[0][1].running_mean)
        assert [row.path for row in fallbacks] == ["features.5"]
        return
    theirs = mnv3_fast.restore(copy.deepcopy(accelerated))(X)
    assert testing.relative_error(ours, theirs) <= testing.NET_LIMIT
    assert len(fallbacks) == (14 if kind == "global hook" else 1)


@torch.no_grad()
def test_the_tree_stays_what_it_was(model: nn.Module) -> None:
    accelerated = mnv3_fast.accelerate(model)
    assert repr(accelerated) == repr(model)
    assert [n for n, _ in accelerated.named_modules()] == [n for n, _ in model.named_modules()]
    assert list(accelerated.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(accelerated.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(accelerated.buffers(), model.buffers(), strict=True))
    assert type(model.features[1]) is torchvision.models.mobilenetv3.InvertedResidual
    for mine, theirs in zip(accelerated.modules(), model.modules(), strict=True):
        assert isinstance(mine, type(theirs))
    assert mnv3_fast.accelerate(model, inplace=True) is model


@torch.no_grad()
def test_restore(model: nn.Module) -> None:
    classes = [type(module) for module in model.modules()]
    expected = model(X)
    mnv3_fast.accelerate(model, inplace=True)
    assert mnv3_fast.restore(model) is model
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(X), expected)


@torch.no_grad()
def test_copies(model: nn.Module, tmp_path) -> None:
    accelerated = mnv3_fast.accelerate(model)
    expected = accelerated(X)
    torch.save(accelerated, tmp_path / "model.pt")
    buffer = io.BytesIO(pickle.dumps(accelerated))
    for other in (
        copy.deepcopy(accelerated),
        pickle.load(buffer),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ):
        assert torch.equal(other(X), expected)
        other.features[3].block[0][0].weight.mul_(2)
        assert not torch.equal(other(X), expected)
        assert torch.equal(accelerated(X), expected)


@torch.no_grad()
def test_replaced_layers_take_effect(model: nn.Module) -> None:
    accelerated = mnv3_fast.accelerate(model, inplace=True)
    accelerated.classifier[3] = nn.Linear(1024, 5)
    assert accelerated(X).shape == (2, 5)
    accelerated.features[0][0] = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
    gray = X[:, :1]
    ours = accelerated(gray)
    assert testing.relative_error(ours, mnv3_fast.restore(copy.deepcopy(accelerated))(gray)) <= testing.NET_LIMIT
    accelerated.features[3] = copy.deepcopy(cached_parity_model("small", 9).features[3])
    changed = accelerated(gray)
    assert not torch.equal(changed, ours)
    assert testing.relative_error(changed, mnv3_fast.restore(copy.deepcopy(accelerated))(gray)) <= testing.NET_LIMIT


def test_attributes_take_effect(model: nn.Module) -> None:
    accelerated = mnv3_fast.accelerate(model, inplace=True)
    with torch.no_grad():
        before = accelerated(X)
        accelerated.features[4].block[0][1].eps = 0.1
        changed = accelerated(X)
        assert not torch.equal(before, changed)
        assert testing.relative_error(changed, mnv3_fast.restore(copy.deepcopy(accelerated))(X)) <= testing.NET_LIMIT


def test_flops_are_the_stock_models() -> None:
    for net in ("large", "small"):
        model = cached_parity_model(net)
        counts = []
        for m in (model, mnv3_fast.accelerate(model)):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                m(testing.parity_images(2, 224))
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0


@torch.no_grad()
def test_other_dtypes_and_autocast_run_on_torch(model: nn.Module) -> None:
    accelerated = mnv3_fast.accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert accelerated(X).dtype == model(X).dtype
    half = mnv3_fast.accelerate(copy.deepcopy(model).bfloat16())
    assert half(X.bfloat16()).dtype is torch.bfloat16
    with mnv3_fast.force_backend("reference"):
        assert torch.equal(accelerated(X), model(X))
        assert mnv3_fast.explain(accelerated, X).fused == 0


def test_errors() -> None:
    with pytest.raises(TypeError, match="accelerate: model must be an nn.Module, got int"):
        mnv3_fast.accelerate(3)
    with pytest.raises(ValueError, match="accelerate: nothing in Linear can be replaced: it has no block of"):
        mnv3_fast.accelerate(nn.Linear(2, 2))
    for function in (mnv3_fast.restore, mnv3_fast.refresh, mnv3_fast.explain):
        with pytest.raises(TypeError, match="model must be an nn.Module, got str"):
            function("model")


def test_a_fallback_is_logged(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    accelerated = mnv3_fast.accelerate(model, inplace=True)
    accelerated.features[5].block[0][1] = nn.Identity()
    accelerated.features[5].block[0][2] = nn.GELU()
    with caplog.at_level(logging.DEBUG, "mnv3_fast"), torch.no_grad():
        accelerated(X)
    assert "InvertedResidual runs on torch: activation GELU has no kernel" in caplog.text
