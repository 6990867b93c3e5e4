"""Names of timm and mmpretrain: timm's own networks have exactly these, in this order and of these shapes."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from mnv3_fast.checkpoints import load_into
from mnv3_fast.checkpoints.files import state_of
from mnv3_fast.checkpoints.fitting import fitted, from_torchvision, recognise, to_torchvision
from mnv3_fast.models.variants import VARIANTS, build
from mnv3_fast.testing.parity import randomize_

SMALL = VARIANTS["mobilenet-v3-small-050_8xb128_in1k"]
TIMM = (
    "mobilenetv3_small_050", "mobilenetv3_small_100", "mobilenetv3_large_100", "mobilenetv3_large_150d",
    "mobilenetv3_rw", "tf_mobilenetv3_small_minimal_100",
)  # fmt: skip


def timm_on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize("name", TIMM)
def test_timm_names_there_and_back(name: str) -> None:
    state = timm_on_meta(name).state_dict()
    naming = recognise(state)
    ours = to_torchvision(state, naming)
    assert naming.family == "timm" and len(ours) == len(state)
    again = from_torchvision(ours, recognise(ours), "timm")
    assert list(again) == list(state)
    assert [tuple(value.shape) for value in again.values()] == [tuple(value.shape) for value in state.values()]


@pytest.fixture(scope="module")
def model() -> Any:
    return randomize_(build(SMALL), 3, 64)


def test_timm_names(model: Any) -> None:
    names = recognise(model.state_dict()).names("timm")
    assert names["features.1.block.0.0.weight"] == "blocks.0.0.conv_dw.weight"
    assert names["features.1.block.1.fc1.bias"] == "blocks.0.0.se.conv_reduce.bias"
    assert names["features.1.block.2.1.running_var"] == "blocks.0.0.bn2.running_var"
    assert names["features.11.block.3.0.weight"] == "blocks.4.2.conv_pwl.weight"
    assert names["features.12.1.bias"] == "blocks.5.0.bn1.bias"
    assert names["classifier.0.weight"] == "conv_head.weight"


def test_loads_timm_names(model: Any, tmp_path: Any) -> None:
    """timm's network computes the same from these weights, so they are in their places."""
    theirs = timm.create_model("mobilenetv3_small_050").eval()
    state = model.state_dict()
    theirs.load_state_dict(from_torchvision(state, recognise(state), "timm"), strict=True)
    images = torch.randn(2, 3, 97, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (theirs(images) - model(images)).norm() <= 2e-6 * model(images).norm()
    torch.save({"state_dict": theirs.state_dict(), "arch": "mobilenetv3_small_050"}, tmp_path / "timm.pth")
    fresh = build(SMALL)
    assert load_into(fresh, tmp_path / "timm.pth")["arch"] == "mobilenetv3_small_050"
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


EMA = {
    "timm": lambda raw, ema: {"state_dict": raw, "state_dict_ema": prefixed(ema, "module.")},
    "torchvision": lambda raw, ema: {
        "model": raw, "model_ema": {"n_averaged": torch.tensor(3), **prefixed(ema, "module.")}, "epoch": 1
    },
    "torchvision, two modules": lambda raw, ema: {"model": raw, "model_ema": prefixed(ema, "module.module.")},
    "ours": lambda raw, ema: {"state_dict": raw, "ema_state_dict": ema},
    "mmengine": lambda raw, ema: {
        "state_dict": ema, "ema_state_dict": {"steps": torch.tensor(3), **prefixed(raw, "module.")}, "message_hub": {}
    },
}  # fmt: skip


@pytest.mark.parametrize("form", EMA)
def test_averaged_weights_are_taken(form: str, model: Any) -> None:
    ema = model.state_dict()
    raw = {key: torch.zeros_like(value) for key, value in ema.items()}
    found = fitted(state_of(EMA[form](raw, ema)), model.state_dict())
    assert all(torch.equal(value, ema[key]) for key, value in found.items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "network.", "model.", "backbone."])
@pytest.mark.parametrize("family", ["torchvision", "timm", "mmpretrain"])
def test_prefixes(prefix: str, family: str, model: Any) -> None:
    state = model.state_dict()
    renamed = prefixed(from_torchvision(state, recognise(state), family), prefix)
    found = fitted(renamed, state)
    assert list(found) == list(state) and all(torch.equal(value, state[key]) for key, value in found.items())
    assert list(fitted(state, renamed)) == list(renamed)


def test_a_backbone_alone(model: Any) -> None:
    """It fits a backbone, and a classifier not: what is missing is named."""
    state = model.state_dict()
    whole = from_torchvision(state, recognise(state), "mmpretrain")
    backbone = {key.removeprefix("backbone."): value for key, value in whole.items() if key.startswith("backbone.")}
    assert list(fitted(backbone, backbone)) == list(backbone)
    with pytest.raises(ValueError, match=r"checkpoint: classifier.0.weight.* and|head.layers.0.fc.weight.*are missing"):
        fitted(backbone, state)
    with pytest.raises(ValueError, match=r"checkpoint: head.layers.0.fc.weight, .* have no place in the model"):
        fitted(whole, backbone)


FOREIGN = {
    "features.4.conv.5.fc.0.weight": "d-li14's MobileNetV3, whose blocks .* squeeze-excite before the activation",
    "features.1.conv.0.0.weight": "MobileNetV2",
    "features.0.0.scale": "it is quantized",
    "blocks.1.mid_se.conv1.weight": "PaddlePaddle's names, which cannot be read yet",
    "conv.bn._mean": "PaddlePaddle's names, which cannot be read yet",
    "expanded_conv_3/depthwise/kernel:0": "Keras or TensorFlow, which cannot be read yet",
}


@pytest.mark.parametrize("key", FOREIGN)
def test_foreign_names(key: str, model: Any) -> None:
    with pytest.raises(ValueError, match=f"checkpoint: .*{FOREIGN[key]}.*found by {key.split('/')[0]}"):
        fitted({**model.state_dict(), key: torch.zeros(1)}, model.state_dict())
