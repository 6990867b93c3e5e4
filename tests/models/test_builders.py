"""The builders: torchvision's signatures, weights and random draws."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from torch import nn

import mnv3_fast


@pytest.mark.parametrize(
    "options",
    [{}, {"width_mult": 0.5}, {"reduced_tail": True}, {"dilated": True}, {"num_classes": 7}, {"dropout": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("name", ["mobilenet_v3_large", "mobilenet_v3_small"])
def test_same_model_as_torchvision(name: str, options: dict) -> None:
    models = []
    for library in (mnv3_fast, torchvision.models):
        torch.manual_seed(0)
        models.append(getattr(library, name)(**options))
    ours, theirs = models
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, torchvision.models.MobileNetV3)
    for (key, a), (other, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(a, b)
    assert ours.training


def test_norm_layer_runs_on_torch() -> None:
    model = mnv3_fast.mobilenet_v3_small(norm_layer=lambda c: nn.GroupNorm(1, c)).eval()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 1000)


def test_errors_and_warnings() -> None:
    with pytest.warns(UserWarning, match="mobilenet_v3_small: unknown options are ignored: widht_mult"):
        mnv3_fast.mobilenet_v3_small(widht_mult=0.5)
    for width in (0, -1.0):
        with pytest.raises(ValueError, match=f"mobilenet_v3_large: width_mult must be greater than 0, got {width}"):
            mnv3_fast.mobilenet_v3_large(width_mult=width)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mnv3_fast.mobilenet_v3_small(num_classes=3)
    with pytest.raises(TypeError, match="positional"):
        mnv3_fast.mobilenet_v3_small("IMAGENET1K_V1")
    assert mnv3_fast.MobileNet_V3_Large_Weights.DEFAULT.name == "IMAGENET1K_V2"
