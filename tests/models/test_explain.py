"""explain: every module that could run on our kernels has a row, with the reason where it does not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.engine.layer_times import layers_of, share_of_calls
from tests.models.common import cached_parity_model
from tests.ops import harness

X = testing.parity_images(2, 64, seed=1)


def test_rows_and_text() -> None:
    explanation = mnv3_fast.explain(mnv3_fast.accelerate(cached_parity_model("small")), X)
    assert [row.path for row in explanation.rows] == [*[f"features.{i}" for i in range(13)], "classifier"]
    kernels = ["stem_conv", *["inverted_residual"] * 11, "pointwise_conv", "run_plan"]
    assert [row.kernel for row in explanation.rows] == kernels
    assert all(row.instruction_set == mnv3_fast.instruction_set() for row in explanation.rows)
    stem = explanation.rows[0]
    assert stem.macs == 2 * 32 * 32 * 16 * 27
    assert "features.0" in str(explanation)
    assert "14 on fused kernels, 0 on torch" in str(explanation)


def test_macs_are_those_of_the_whole_network() -> None:
    x = testing.parity_images(1, 224)
    for net, total in (("large", 216.6e6), ("small", 56.5e6)):
        model = cached_parity_model(net)
        macs = sum(row.macs for row in mnv3_fast.explain(mnv3_fast.accelerate(model), x).rows)
        assert macs == pytest.approx(total, rel=1e-3)


def test_what_was_not_replaced_says_why() -> None:
    model = copy.deepcopy(cached_parity_model("small"))
    model.features[5].block[0][2] = torch.nn.GELU()
    rows = mnv3_fast.explain(mnv3_fast.accelerate(model), X).fallbacks
    assert ("features.5", "activation GELU has no kernel (relu, hardswish and relu6 have)") in [
        (r.path, r.reason) for r in rows
    ]
    assert {row.reason for row in mnv3_fast.explain(model).fallbacks if row.path == "features.4"} == {
        "it is not accelerated"
    }


def test_environment() -> None:
    accelerated = mnv3_fast.accelerate(cached_parity_model("small"))
    with mnv3_fast.force_backend("reference"):
        explanation = mnv3_fast.explain(accelerated)
    assert explanation.fused == 0
    assert {row.reason for row in explanation.rows} == {"the kernels are switched off (backend reference)"}


def test_an_engine_on_the_reference_says_so() -> None:
    engine = mnv3_fast.freeze(cached_parity_model("small"))
    assert not mnv3_fast.explain(engine).fallbacks
    with mnv3_fast.force_backend("reference"):
        explanation = mnv3_fast.explain(engine)
    assert explanation.fused == 0
    assert {row.kernel for row in explanation.rows} == {"reference"}
    assert {row.reason for row in explanation.rows} == {"the kernels are switched off (backend reference)"}


def test_a_model_in_training_mode_stays_as_it_is() -> None:
    model = mnv3_fast.accelerate(copy.deepcopy(cached_parity_model("small")), inplace=True).train()
    before = copy.deepcopy(model.state_dict())
    explanation = mnv3_fast.explain(model, X)
    assert model.training
    assert explanation.divided == {"": "it is in training mode"}
    assert "the network: part by part, since it is in training mode" in str(explanation)
    assert {row.reason for row in explanation.rows} == {"it is in training mode"}
    assert all(row.macs for row in explanation.rows)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_models_in_which_nothing_is_ours() -> None:
    for model, x in ((nn.Linear(3, 4), torch.zeros(2, 3)), (nn.Sequential(), X), (nn.Conv2d(3, 4, 3), X)):
        for explanation in (mnv3_fast.explain(model), mnv3_fast.explain(model, x)):
            assert explanation.rows == []
            assert "no block of torchvision's, timm's or mmpretrain's MobileNetV3 and no engine inside" in str(
                explanation
            )
            assert "0 on fused kernels, 0 on torch" in str(explanation)


@pytest.mark.parametrize(
    "kind", [mnv3_fast.accelerate, mnv3_fast.freeze, lambda m: mnv3_fast.accelerate(m).features[3]]
)
@pytest.mark.parametrize("x", ["image.jpg", [X], X.numpy(), (1, 3, 64, 64), {}], ids=lambda x: type(x).__name__)
def test_an_input_that_is_no_tensor(kind: Any, x: Any) -> None:
    with pytest.raises(TypeError, match=f"explain: input must be a Tensor, got {type(x).__name__}"):
        mnv3_fast.explain(kind(cached_parity_model("small")), x)
    with pytest.raises(TypeError, match=f"explain: model must be an nn.Module, got {type(x).__name__}"):
        mnv3_fast.explain(x)


def test_images_of_bytes_are_for_engines() -> None:
    x = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    model = testing.parity_model("small")
    with pytest.raises(TypeError, match=r"explain: input must be float32, got torch.uint8; only an engine takes uint8"):
        mnv3_fast.explain(mnv3_fast.accelerate(model), x)
    assert "times with" in str(mnv3_fast.explain(mnv3_fast.freeze(model), x)) or not mnv3_fast.instruction_sets()


def test_a_model_of_ones_own_may_take_other_inputs() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = mnv3_fast.accelerate(cached_parity_model("small"))

        def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
            return self.network(torch.stack(images))

    explanation = mnv3_fast.explain(Detector(), list(X))
    assert explanation.fused == 14
    assert all(row.macs for row in explanation.rows)


@harness.needs_kernels
@pytest.mark.parametrize("net", ["large", "small"])
@pytest.mark.parametrize("threads", [1, 2])
def test_layers_of_an_engine(net: str, threads: int) -> None:
    """Their work adds up to the network's, and their times to most of a call."""
    torch.set_num_threads(threads)
    x = testing.parity_images(3, 224)
    engine = mnv3_fast.freeze(cached_parity_model(net))
    explanation = mnv3_fast.explain(engine, x)
    rows = explanation.rows
    assert [row.kernel for row in rows] == ["run_plan"] * len(rows)
    assert sum(row.macs for row in rows) == 3 * testing.layers.network_macs(net)
    weights = sum(4 * p.numel() for name, p in cached_parity_model(net).named_parameters() if p.dim() > 1)
    assert sum(layer.weight_bytes for layer in layers_of(engine.plan, None)) == pytest.approx(weights, rel=0.01)
    for row in rows:
        if row.kind == "pool":
            assert row.milliseconds is None
            continue
        assert row.milliseconds > 0
        assert row.gmacs == pytest.approx(row.macs / row.milliseconds * 1e-6)
        assert row.bound in ("multiply-adds", "reading weights", "neither")
        assert row.bytes > 0
        assert row.tile == "{}x{}".format(*mnv3_fast._library.extension().tile())
    shares = sum(row.percent_of_call for row in rows if row.percent_of_call is not None)
    assert 50 < shares <= 100.5
    assert f"engine layers: {shares:.1f}% of the time of their calls" in str(explanation)
    assert mnv3_fast._library.extension().layer_times()  # of the last plan that was timed
    engine(x)
    assert mnv3_fast._library.extension().layer_times() == []


def test_engines_that_cannot_be_explained() -> None:
    engine = mnv3_fast.freeze(cached_parity_model("small"))

    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.engine = engine

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.engine()

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        mnv3_fast.explain(Forgetful(), X)
    elsewhere = copy.deepcopy(engine)
    elsewhere.plan = elsewhere.plan.to("meta")
    with pytest.raises(ValueError, match="plan: expected one in memory, got one on device meta"):
        mnv3_fast.explain(elsewhere)
    engine.plan = engine.plan[:10]
    with pytest.raises(ValueError, match=r"plan: expected a uint8 vector of at least \d+, got uint8 \[10\]"):
        mnv3_fast.explain(engine)


def test_layers_of_several_engines_take_at_most_all_of_their_calls() -> None:
    """Two engines: 3 of 4 ms and 5 of 10 ms are 8 of 14."""
    rows = [("a.0", 1.0, 25.0), ("a.1", 2.0, 50.0), ("b.0", 5.0, 50.0), ("c", None, None), ("c.0", 0.0, 0.0)]
    assert share_of_calls(rows) == pytest.approx(100 * 8 / 14)
    assert share_of_calls([]) is None
