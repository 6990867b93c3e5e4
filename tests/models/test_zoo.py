"""list_models and create_model: names, weights, classes, and what is refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models import MobileNet_V3_Large_Weights

import mnv3_fast
from mnv3_fast.models.variants import FAMILIES, VARIANTS, build, find_variant
from mnv3_fast.testing import parity_images
from mnv3_fast.testing.parity import randomize_
from tests.models.common import assert_runs_fused

SMALL = "mobilenet_v3_small"


def test_list_models() -> None:
    assert mnv3_fast.list_models() == list(VARIANTS)
    assert mnv3_fast.list_models("mobilenet_v3_*") == ["mobilenet_v3_large", SMALL]
    assert mnv3_fast.list_models("*X1_25") == ["MobileNetV3_large_x1_25", "MobileNetV3_small_x1_25"]
    assert mnv3_fast.list_models("tf_*small*", family="timm") == [
        "tf_mobilenetv3_small_075", "tf_mobilenetv3_small_100", "tf_mobilenetv3_small_minimal_100",
    ]  # fmt: skip
    assert mnv3_fast.list_models("resnet*") == []
    assert sum(len(mnv3_fast.list_models(family=family)) for family in FAMILIES) == len(VARIANTS)
    with pytest.raises(ValueError, match="list_models: family must be one of torchvision, timm, .*, got 'tf'"):
        mnv3_fast.list_models(family="tf")
    with pytest.raises(TypeError, match="list_models: pattern must be text, got int"):
        mnv3_fast.list_models(3)
    with pytest.raises(TypeError, match="find_variant: name must be text, got NoneType"):
        find_variant(None)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The weights of torchvision's small as a file, which takes the place of the published one."""
    state = randomize_(build(VARIANTS[SMALL]), 7, 64).state_dict()
    torch.save(state, tmp_path / "small.pth")
    row = VARIANTS[SMALL]
    weights = replace(row.weights[0], url=(tmp_path / "small.pth").as_uri())
    monkeypatch.setitem(VARIANTS, SMALL, replace(row, weights=(weights,)))
    return state


def same(model: nn.Module, state: dict[str, torch.Tensor], but: str = " ") -> bool:
    found = model.state_dict()
    assert list(found) == list(state)
    return all(torch.equal(found[name], tensor) for name, tensor in state.items() if not name.startswith(but))


def test_weights(trained: dict[str, torch.Tensor]) -> None:
    member = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    for name, weights in (("small", "DEFAULT"), (SMALL, member), (f"{SMALL}.IMAGENET1K_V1", "IMAGENET1K_V1")):
        model = mnv3_fast.create_model(name, weights=weights)
        assert same(model, trained)
        assert model.training
    assert_runs_fused(model.eval(), parity_images(1, 64))


def test_weights_under_timms_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tag's file of timm's own names, of another number of classes than the variant's."""
    name, tag = "mobilenetv3_large_100", "miil_in21k"
    theirs = timm.create_model(name, num_classes=11221)
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    row = VARIANTS[name]
    files = tuple(replace(weights, url=(tmp_path / "file.pth").as_uri()) for weights in row.weights)
    monkeypatch.setitem(VARIANTS, name, replace(row, weights=files))
    model = mnv3_fast.create_model("mobilenetv3_large_100_miil_in21k", weights="DEFAULT")
    assert torch.equal(model.classifier[3].weight, theirs.classifier.weight)
    assert torch.equal(
        mnv3_fast.create_model(name, weights=tag, num_classes=5).features[0][0].weight, theirs.conv_stem.weight
    )
    with pytest.raises(ValueError, match="11221"):
        mnv3_fast.create_model(name, weights="DEFAULT")


def test_nothing_is_read_unasked(trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    (tmp_path / "small.pth").unlink()
    for name in (SMALL, f"{SMALL}.IMAGENET1K_V1"):
        assert not same(mnv3_fast.create_model(name), trained)
    with pytest.raises(FileNotFoundError, match="checkpoint: there is no file"):
        mnv3_fast.create_model(SMALL, weights="DEFAULT")


def test_other_classes_get_a_fresh_last_layer(trained: dict[str, torch.Tensor]) -> None:
    model = mnv3_fast.create_model(SMALL, weights="DEFAULT", num_classes=7, dropout=0.5)
    last = model.classifier[3]
    assert (last.in_features, last.out_features, model.classifier[2].p) == (1024, 7, 0.5)
    assert float(last.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not last.bias.any()
    assert same(model, trained, but="classifier.3.")
    assert same(mnv3_fast.create_model(SMALL, weights="DEFAULT", num_classes=1000), trained)
    x = parity_images(2, 64)
    assert model.eval()(x).shape == (2, 7)


def test_a_checkpoint_must_fit(trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    own = build(VARIANTS[SMALL], num_classes=7).state_dict()
    torch.save(own, tmp_path / "own.pth")
    assert same(mnv3_fast.create_model(SMALL, checkpoint=tmp_path / "own.pth", num_classes=7), own)
    with pytest.raises(ValueError, match=r"classifier.3.weight is \[7, 1024\], the model's is \[1000, 1024\]"):
        mnv3_fast.create_model(SMALL, checkpoint=tmp_path / "own.pth")
    with pytest.raises(ValueError, match="create_model: weights and checkpoint exclude each other"):
        mnv3_fast.create_model(SMALL, weights="DEFAULT", checkpoint=tmp_path / "own.pth")


def test_refusals() -> None:
    cases: list[tuple[type[Exception], str, dict]] = [
        (ValueError, "unknown model 'mobilenetv3_small_10'; like it are mobilenetv3_small_100, ", {"name": "mobilenetv3_small_10"}),
        (ValueError, "unknown model 'resnet50'; there are mobilenet_v3_large, ", {"name": "resnet50"}),
        (ValueError, "weights 'V3' do not exist for mobilenet_v3_large; there are DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2$",
         {"name": "large", "weights": "V3"}),
        (ValueError, "weights 'DEFAULT' do not exist for mobilenetv3_large_075; there are none$",
         {"name": "mobilenetv3_large_075", "weights": "DEFAULT"}),
        (ValueError, "the weights of MobileNetV3_small_x1_0 are a .pdparams file, which cannot be read: https://",
         {"name": "MobileNetV3_small_x1_0", "weights": "DEFAULT"}),
        (ValueError, "the weights of keras_mobilenetv3_large_100 are a .h5 file, which cannot be read: https://",
         {"name": "MobileNetV3Large", "weights": "imagenet"}),
        (ValueError, r"weights 'DEFAULT' do not exist for mobilenet_v3_large \(width_mult=0.5\); there are none",
         {"name": "large", "width_mult": 0.5, "weights": "DEFAULT"}),
        (ValueError, "are for mobilenet_v3_large and mobilenet_v3_small, got tf_mobilenetv3_small_100; list_models has",
         {"name": "tf_mobilenetv3_small_100", "dilated": True}),
        (ValueError, "width_mult must be greater than 0, got 0", {"name": "large", "width_mult": 0}),
        (ValueError, "num_classes must be at least 1, got 0", {"name": "large", "num_classes": 0}),
        (TypeError, "num_classes must be a whole number, got float", {"name": "large", "num_classes": 10.0}),
        (TypeError, "name must be text, got int", {"name": 3}),
        (TypeError, "width_mult must be a number, got str", {"name": "large", "width_mult": "0.5"}),
        (ValueError, "width_mult must be finite, got inf", {"name": "large", "width_mult": float("inf")}),
        (ValueError, "dropout must be from 0 to 1, got 2", {"name": "large", "dropout": 2}),
        (ValueError, "dropout must be finite, got nan", {"name": "large", "dropout": float("nan")}),
        (ValueError, "weights MobileNet_V3_Large_Weights.IMAGENET1K_V1 are of another network than mobilenet_v3_small",
         {"name": "small", "weights": MobileNet_V3_Large_Weights.IMAGENET1K_V1}),
    ]  # fmt: skip
    for kind, message, arguments in cases:
        with pytest.raises(kind, match=f"create_model: .*{message}"):
            mnv3_fast.create_model(**arguments)


def test_it_is_quiet(
    trained: dict[str, torch.Tensor], capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    mnv3_fast.create_model(SMALL, weights="DEFAULT")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_name_runs_fused(name: str) -> None:
    model = mnv3_fast.create_model(name).eval()
    x = parity_images(1, 64)
    assert model(x).shape == (1, VARIANTS[name].num_classes)
    assert_runs_fused(model, mnv3_fast.freeze(model), x)
