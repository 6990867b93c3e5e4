"""``load_checkpoint``: the variant that a file's tensors are of, and what a given model must agree with."""

from __future__ import annotations

import argparse
import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import mnv3_fast
from mnv3_fast.checkpoints import classes_of
from mnv3_fast.checkpoints.fitting import from_torchvision, recognise
from mnv3_fast.checkpoints.matching import variant_named
from mnv3_fast.models.variants import VARIANTS, build
from mnv3_fast.testing.parity import parity_images, randomize_

IMAGES = parity_images(2, 97, 65, seed=5)
NAMES = {
    "mobilenet_v3_small (width_mult=0.5)": "torchvision",
    "mobilenetv3_small_050": "timm",
    "mobilenet-v3-small-075_8xb128_in1k": "mmpretrain",
}


def parity(name: str, classes: int | None = None) -> nn.Module:
    return randomize_(build(variant_named(name), classes), 3, 64)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {name: parity(name) for name in NAMES}


def renamed(model: nn.Module, family: str) -> dict[str, Any]:
    state = model.state_dict()
    return from_torchvision(state, recognise(state), family)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IMAGES)


@pytest.mark.parametrize("name", NAMES)
def test_the_variant_is_found(name: str, models: dict[str, nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    """By shapes and names alone; eps is then the family's."""
    caplog.set_level(logging.INFO, "mnv3_fast")
    family = NAMES[name]
    found = mnv3_fast.load_checkpoint(renamed(models[name], family))
    source = found.checkpoint_source
    assert (source.family, source.variant.name) == (family, name)
    assert not found.training and torch.equal(logits(found), logits(models[name]))
    assert f"has {family}'s names; taken for {name} " in caplog.text
    assert f"does not tell BatchNorm's eps; that of {name} is {source.variant.bn_eps:g}" in caplog.text
    fast = mnv3_fast.accelerate(found)
    assert (logits(fast) - logits(found)).norm() <= 2e-5 * logits(found).norm()


def test_another_number_of_classes(tmp_path: Path) -> None:
    model = parity("mobilenetv3_small_050", 7)
    torch.save({"model": renamed(model, "timm")}, tmp_path / "file.pth")
    found = mnv3_fast.load_checkpoint(tmp_path / "file.pth")
    assert found.classifier[3].out_features == 7 and torch.equal(logits(found), logits(model))
    with pytest.raises(ValueError, match="it has 7 classes, the model 1000; a model with num_classes=7 fits"):
        mnv3_fast.load_checkpoint(tmp_path / "file.pth", build(variant_named("mobilenetv3_small_050")))


def facts(kind: str) -> tuple[dict[str, Any], str]:
    """What trainers write beside the weights of a network of width 1, and what it is."""
    arguments = argparse.Namespace(model="mobilenetv3_small_100", bn_eps=1e-3, mean=None)
    config = """
        model = dict(backbone=dict(arch='small_050', norm_cfg=dict(type='BN', eps=1e-05, momentum=0.1)), head=dict())
        __import__('os').mkdir('/nowhere')
    """.replace("        ", "")
    return {
        "timm's arch": ({"arch": "tf_mobilenetv3_small_075"}, "tf_mobilenetv3_small_075"),
        "timm's arguments": ({"args": arguments}, "mobilenetv3_small_100"),
        "timm's pretrained_cfg": (
            {"pretrained_cfg": {"architecture": "mobilenetv3_small_075", "tag": "lamb_in1k"}}, "mobilenetv3_small_075",
        ),
        "our training": ({"meta": {"variant": "keras_mobilenetv3_small_075"}}, "keras_mobilenetv3_small_075"),
        "mmengine": ({"meta": {"cfg": config}}, "mobilenet-v3-small-050_8xb128_in1k"),
    }[kind]  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["timm's arch", "timm's arguments", "timm's pretrained_cfg", "our training", "mmengine"]
)
def test_what_trainers_say(kind: str, tmp_path: Path) -> None:
    beside, name = facts(kind)
    state = build(variant_named(name), 5).state_dict()
    torch.save({"state_dict": state, **beside}, tmp_path / "file.pth")
    found = mnv3_fast.load_checkpoint(tmp_path / "file.pth")
    variant = found.checkpoint_source.variant
    assert variant.name == name
    assert {m.eps for m in found.modules() if isinstance(m, nn.BatchNorm2d)} == {
        1e-3 if kind == "timm's arguments" else variant.bn_eps
    }


def test_a_file_of_the_hub_and_a_published_file(tmp_path: Path, models: dict[str, nn.Module]) -> None:
    """``config.json`` beside it, and the name of the file, say what its shapes cannot."""
    state = renamed(models["mobilenet-v3-small-075_8xb128_in1k"], "timm")
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    assert (
        mnv3_fast.load_checkpoint(tmp_path / "model.safetensors").checkpoint_source.variant.name
        == "mobilenetv3_small_075"
    )
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "tf_mobilenetv3_small_075"}))
    found = mnv3_fast.load_checkpoint(tmp_path / "model.safetensors")
    assert found.checkpoint_source.variant.name == "tf_mobilenetv3_small_075"
    (tmp_path / "config.json").unlink()
    torch.save(state, tmp_path / "tf_mobilenetv3_small_075-da427f52.pth")
    found = mnv3_fast.load_checkpoint(tmp_path / "tf_mobilenetv3_small_075-da427f52.pth")
    assert found.checkpoint_source.variant.name == "tf_mobilenetv3_small_075"
    assert found.features[0][0].padding != 1, "TensorFlow's padding"


CLASSES = ["cat", "dog"]


@pytest.mark.parametrize(
    "meta",
    [{"CLASSES": CLASSES}, {"dataset_meta": {"classes": tuple(CLASSES)}}, {"variant": "mobilenetv3_small_050", "classes": CLASSES}],
)  # fmt: skip
def test_names_of_classes(meta: dict[str, Any]) -> None:
    content = {"state_dict": build(variant_named("mobilenetv3_small_050"), 2).state_dict(), "meta": meta}
    assert mnv3_fast.load_checkpoint(content).checkpoint_source.classes == tuple(CLASSES)
    assert classes_of(content, 2) == tuple(CLASSES)
    assert classes_of(content, 3) is None


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("target", ["timm", "mmpretrain", "ours"])
def test_into_a_model_of_another_library(target: str, wrapped: bool, models: dict[str, nn.Module]) -> None:
    source = models["mobilenetv3_small_050"]
    if target == "timm":
        model: nn.Module = timm.create_model("mobilenetv3_small_050").eval()
    elif target == "mmpretrain":
        model = Named(renamed(build(variant_named("mobilenetv3_small_050")), "mmpretrain"))
    else:
        model = mnv3_fast.accelerate(build(variant_named("mobilenetv3_small_050")).eval())
    assert mnv3_fast.load_checkpoint(source.state_dict(), nn.DataParallel(model) if wrapped else model) is not None
    if target == "mmpretrain":
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in renamed(source, "mmpretrain").items())
    else:
        assert (logits(model) - logits(source)).norm() <= 2e-5 * logits(source).norm()


class Named(nn.Module):
    """A model that has a state_dict of given names and nothing else."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for key, value in state.items():
            module: nn.Module = self
            *path, last = key.split(".")
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            module.register_buffer(last, torch.zeros_like(value))


REFUSED = {
    "scaling": (
        "mobilenetv3_small_075", "mobilenet_v3_small (width_mult=0.75)",
        r"is \[.*\], the model's is \[.*\] \(\d+ more differ\); it is mobilenetv3_small_075 \(timm's, hidden channels scaled by "
        r"ratio\); the model is mobilenet_v3_small \(width_mult=0.75\) \(torchvision's, hidden channels scaled by "
        r"expansion\); mnv3_fast.create_model\('mobilenetv3_small_075'\) fits",
    ),
    "size": (
        "mobilenet_v3_small", "mobilenet_v3_large", r"features.1.block.1.0.weight, .* and 101 more are missing; .* have no place in the model; it is mobilenet_v3_small "
        r"\(torchvision's\); the model is mobilenet_v3_large .*; mnv3_fast.create_model\('mobilenet_v3_small'\) fits",
    ),
    "width": (
        "mobilenet_v3_small (width_mult=0.5)", "mobilenet_v3_small",
        r"the model is mobilenet_v3_small .*create_model\('mobilenet_v3_small', width_mult=0.5\) fits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_says_what_would(kind: str) -> None:
    source, target, message = REFUSED[kind]
    model = build(variant_named(target))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        mnv3_fast.load_checkpoint(build(variant_named(source)).state_dict(), model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_no_variant_is(models: dict[str, nn.Module]) -> None:
    state = models["mobilenetv3_small_050"].state_dict()
    odd = {**state, "features.3.block.0.0.weight": torch.zeros(64, 16, 1, 1)}
    with pytest.raises(
        ValueError,
        match=r"closest is mobilenetv3_small_050 .*differs in 1 entries, first features.3.block.0.0.weight: \[64, 16, 1, 1\], there",
    ):
        mnv3_fast.load_checkpoint(odd)
    with pytest.raises(
        ValueError, match="no known MobileNetV3 has its shapes; it has 13 layers, the first with 17 channels, as none"
    ):
        mnv3_fast.load_checkpoint({**state, "features.0.0.weight": torch.zeros(17, 3, 3, 3)})
    headless = {key: value for key, value in state.items() if not key.startswith("classifier.3")}
    with pytest.raises(ValueError, match="without its last layer"):
        mnv3_fast.load_checkpoint(headless)
    with pytest.raises(
        ValueError,
        match="its tensors are none of mobilenetv3_small_075 .*, which it was named; they are those of mobilenetv3_small_050",
    ):
        mnv3_fast.load_checkpoint({"state_dict": state, "arch": "mobilenetv3_small_075"})


@pytest.mark.parametrize(
    "name",
    ["mobilenetv3_rw", "MobileNetV3_small_x0_35", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)],
)
def test_every_variant_is_found_by_its_name(name: str) -> None:
    """As our training writes it; through timm's names, too, which all graphs have."""
    state = build(variant_named(name), 3).state_dict()
    for content in (state, from_torchvision(state, recognise(state), "timm")):
        found = mnv3_fast.load_checkpoint({"state_dict": content, "meta": {"variant": name}})
        assert found.checkpoint_source.variant.name == name
        assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())


def test_loaded_models_are_copied_and_saved(models: dict[str, nn.Module], tmp_path: Path) -> None:
    found = mnv3_fast.load_checkpoint(models["mobilenetv3_small_050"].state_dict())
    torch.save(copy.deepcopy(found), tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert again.checkpoint_source == found.checkpoint_source and torch.equal(logits(again), logits(found))


def test_a_model_that_computes_otherwise(models: dict[str, nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    """Only warned of where the file does not say what it was trained with, and not where anything of its family has it."""
    tensors = renamed(models["mobilenet-v3-small-075_8xb128_in1k"], "timm")
    mnv3_fast.load_checkpoint(tensors, timm.create_model("tf_mobilenetv3_small_075"))
    assert not caplog.records
    mnv3_fast.load_checkpoint(
        {"state_dict": tensors, "arch": "mobilenetv3_small_075"}, timm.create_model("tf_mobilenetv3_small_075")
    )
    assert (
        "bn_eps is 0.001 in the model, 1e-05 in mobilenetv3_small_075; padding is same in the model, symmetric in"
        in caplog.text
    )
    caplog.clear()
    mnv3_fast.load_checkpoint(
        {"state_dict": tensors, "meta": {"variant": "tf_mobilenetv3_small_075"}},
        build(variant_named("mobilenetv3_small_075")),
    )
    assert "bn_eps is 1e-05 in the model, 0.001 in tf_mobilenetv3_small_075" in caplog.text
    caplog.clear()
    state = models["mobilenet_v3_small (width_mult=0.5)"].state_dict()
    mnv3_fast.load_checkpoint(state, build(variant_named("mobilenet_v3_small (width_mult=0.5)")))
    assert not caplog.records


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="expected a path or a URL, got int"):
        mnv3_fast.load_checkpoint(3)  # type: ignore[arg-type]
