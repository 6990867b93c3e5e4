"""accelerate, restore and the proof that it is our kernels that ran."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
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
