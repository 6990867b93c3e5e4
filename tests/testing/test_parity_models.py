"""The parity models show faults and torch itself passes on them; layers and cases are what they say."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import misc

from mnv3_fast import testing

NETS = ("large", "small")


@pytest.fixture(scope="module", params=NETS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return testing.parity_model(request.param, seed=1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return testing.parity_images(2, 224, seed=2)


@torch.no_grad()
def test_another_image_moves_the_logits(model: nn.Module, images: torch.Tensor) -> None:
    logits = model(images)
    assert testing.relative_error(logits[:1], logits[1:]) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("fault", testing.FAULTS)
def test_each_planted_fault_is_found(model: nn.Module, images: torch.Tensor, fault: str) -> None:
    faulty = testing.FAULTS[fault](model)
    with pytest.raises(AssertionError, match="relative error"):
        testing.assert_net_equal(faulty(images), model(images))
    assert testing.relative_error(faulty(images), model(images)) > 100 * testing.NET_LIMIT


@torch.no_grad()
def test_torch_itself_passes(model: nn.Module, images: torch.Tensor) -> None:
    folded = copy.deepcopy(model)
    for module in folded.modules():
        if isinstance(module, misc.Conv2dNormActivation):
            module[0] = fuse_conv_bn_eval(module[0], module[1])
            module[1] = nn.Identity()
    folded = folded.to(memory_format=torch.channels_last)
    error = testing.relative_error(folded(images.to(memory_format=torch.channels_last)), model(images))
    assert 0 < error < testing.NET_LIMIT / 4


@torch.no_grad()
def test_a_fresh_model_would_hide_faults(images: torch.Tensor) -> None:
    fresh = torchvision.models.mobilenet_v3_small().eval()
    logits = fresh(images)
    for fault in testing.FAULTS.values():
        assert torch.allclose(fault(fresh)(images), logits, rtol=0, atol=1e-6)


def test_parity_models_are_repeatable_and_leave_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    first, second = testing.parity_model("small", seed=3, size=64), testing.parity_model("small", seed=3, size=64)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert first.features[0][1].momentum == 0.01
    assert not first.training


@torch.no_grad()
def test_a_detectors_backbone_with_frozen_norms() -> None:
    """FrozenBatchNorm2d has no training mode; its statistics are set all the same."""

    def build() -> nn.Module:
        return torchvision.models.mobilenet_v3_small(norm_layer=misc.FrozenBatchNorm2d).features

    backbone = testing.parity_model(build, seed=4, size=97)
    maps = backbone(testing.parity_images(2, 97, seed=5))
    assert testing.relative_error(maps[:1], maps[1:]) > 0.1
    assert torch.isfinite(maps).all()
    for norm in (m for m in backbone.modules() if isinstance(m, misc.FrozenBatchNorm2d)):
        assert norm.running_var.std() > 0
        assert not norm._forward_pre_hooks


@torch.no_grad()
def test_the_recipe() -> None:
    """Weights, BatchNorm vectors and statistics have the distributions that the recipe names."""
    model = testing.parity_model("large", seed=6)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.numel() > 20_000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    weight, bias = (torch.cat([getattr(norm, name) for norm in norms]) for name in ("weight", "bias"))
    assert 0.7 <= weight.min() < 0.71
    assert 1.29 < weight.max() <= 1.3
    assert bias.std().item() == pytest.approx(0.2, rel=0.05)
    assert abs(bias.mean().item()) < 0.01
    for norm in norms:
        assert norm.running_var.min() > 0
        assert (norm.eps, norm.momentum) == (1e-3, 0.01)


def test_real_layers_add_up_to_the_published_work() -> None:
    for net, published, classifier in (
        ("large", 216.6, 960 * 1280 + 1280 * 1000),
        ("small", 56.5, 576 * 1024 + 1024 * 1000),
    ):
        whole = ("stem_conv", "inverted_residual")
        body = sum(layer.macs() for layer in testing.real_layers(net) if layer.op in whole or layer.name == "tail")
        assert body + classifier == testing.layers.network_macs(net)
        assert testing.layers.network_macs(net) / 1e6 == pytest.approx(published, abs=0.05)
    names = [layer.name for layer in testing.real_layers("large")]
    assert names[0] == "stem"
    assert names[-1] == "tail"
    assert len(names) == len(set(names))


def test_cases_are_repeatable_and_cover_every_layout() -> None:
    for op in testing.cases.OPS:
        cases = testing.op_cases(op)
        assert len({str(case) for case in cases}) == len(cases)
        if op != "fold_batch_norm":
            assert {case.layout for case in cases} == set(testing.cases.LAYOUTS)
        (first, *_), _ = cases[0].make()
        (again, *_), _ = cases[0].make()
        assert torch.equal(first, again)
    with pytest.raises(ValueError, match="op_cases: op must be one of"):
        testing.op_cases("conv")
