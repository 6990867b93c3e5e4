"""``mnv3-fast convert``: round trips, what libraries read of it, what is refused, and that nothing is half written."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import mnv3_fast
from mnv3_fast.checkpoints import classes_of, converting, read_checkpoint
from mnv3_fast.checkpoints.matching import variant_named
from mnv3_fast.cli import app
from mnv3_fast.models.variants import build
from mnv3_fast.testing.parity import parity_images, randomize_
from tests.cli.test_processes import run

IMAGES = parity_images(2, 97, 65, seed=5)


def parity(name: str, classes: int | None = None) -> nn.Module:
    return randomize_(build(variant_named(name), classes), 3, 64)


def convert(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IMAGES)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).norm() <= 2e-6 * theirs.norm())


@pytest.fixture(autouse=True)
def short_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is for users; what it tells apart shows at any."""
    monkeypatch.setattr(converting, "SIZES", ((97, 65),))


@pytest.mark.parametrize("size", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_full_circle(size: str, tmp_path: Path) -> None:
    """torchvision, timm, mmpretrain, torchvision: the same bits; each library reads what is written for it."""
    model = parity(f"mobilenet_v3_{size}")
    torch.save(model.state_dict(), tmp_path / "torchvision.pth")
    said = convert(tmp_path / "torchvision.pth", tmp_path / "timm.pth", "--to", "timm")
    assert f"timm.create_model('mobilenetv3_{size}_100', bn_eps=0.001)" in said
    theirs = timm.create_model(f"mobilenetv3_{size}_100", bn_eps=1e-3, checkpoint_path=str(tmp_path / "timm.pth"))
    assert close(logits(theirs), logits(model))
    assert list(torch.load(tmp_path / "timm.pth", weights_only=True)) == list(theirs.state_dict())
    said = convert(tmp_path / "timm.pth", tmp_path / "mmpretrain.pth", "--to", "mmpretrain")
    assert "mobilenet_v3_" + size + " (by its metadata)" in said and "eps" not in said.split("read")[0]
    content = torch.load(tmp_path / "mmpretrain.pth", weights_only=True)
    assert (
        len(content["meta"]["CLASSES"]) == 1000 and next(iter(content["state_dict"])) == "backbone.layer0.conv.weight"
    )
    convert(tmp_path / "mmpretrain.pth", tmp_path / "back.pth", "--to", "torchvision")
    again = torchvision.models.get_model(f"mobilenet_v3_{size}")
    state = torch.load(tmp_path / "back.pth", weights_only=True)
    again.load_state_dict(state, strict=True)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(logits(again), logits(model))


def test_half_precision_is_told(tmp_path: Path) -> None:
    model = parity("mobilenet_v3_small (width_mult=0.35)", 3)
    torch.save(model.half().state_dict(), tmp_path / "half.pth")
    assert "its weights are float16, written is float32" in convert(
        tmp_path / "half.pth", tmp_path / "out.pth", "--to", "torchvision"
    )
    assert torch.load(tmp_path / "out.pth")["classifier.3.weight"].dtype is torch.float32


@pytest.mark.parametrize("width", ["050", "075"])
def test_widths_of_timm_and_mmpretrain(width: str, tmp_path: Path) -> None:
    model = randomize_(timm.create_model(f"mobilenetv3_small_{width}"), 3, 64)
    torch.save({"state_dict": model.state_dict(), "arch": f"mobilenetv3_small_{width}"}, tmp_path / "timm.pth")
    convert(tmp_path / "timm.pth", tmp_path / "mm.pth", "--to", "mmpretrain")
    found = mnv3_fast.load_checkpoint(
        tmp_path / "mm.pth", build(variant_named(f"mobilenet-v3-small-{width}_8xb128_in1k"))
    )
    assert close(logits(found), logits(model))
    convert(tmp_path / "mm.pth", tmp_path / "back.pth", "--to", "timm")
    again = timm.create_model(f"mobilenetv3_small_{width}", checkpoint_path=str(tmp_path / "back.pth"))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.equal(logits(again), logits(model))
    said = convert(tmp_path / "timm.pth", tmp_path / "tv.pth", "--to", "torchvision", status=2)
    assert f"torchvision has no network with the shapes of mobilenetv3_small_{width} (timm's, hidden channels scaled by ratio); fits: safetensors, timm, mmpretrain" in said.replace("\n", " ")  # fmt: skip
    assert not (tmp_path / "tv.pth").exists()


def test_safetensors_carry_what_is_not_in_tensors(tmp_path: Path) -> None:
    model = randomize_(timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=9), 3, 64)
    torch.save({"model": model.state_dict()}, tmp_path / "timm.pth")
    out = tmp_path / "file.safetensors"
    said = convert(tmp_path / "timm.pth", out, "--to", "safetensors", "--json")
    with safe_open(out, framework="pt") as file:
        metadata = file.metadata()
    values = {key.removeprefix("mnv3_fast."): json.loads(metadata[key]) for key in metadata if key != "format"}
    certificate = values.pop("certificate")
    assert certificate == json.loads(said)["certificate"] and certificate["relative_l2"] < 1e-12
    assert certificate["source"].startswith("tf_mobilenetv3_small_minimal_100, timm's own network")
    assert values == {
        "variant": "tf_mobilenetv3_small_minimal_100", "bn_eps": 1e-3, "bn_momentum": 0.1, "padding": "same",
        "gate_slope": 1 / 6, "mean": [127.5] * 3, "std": [127.5] * 3, "resize": 256, "crop": 224,
        "interpolation": "bilinear",
    }  # fmt: skip
    found = mnv3_fast.load_checkpoint(out)
    assert classes_of(read_checkpoint(out), 9) is None  # timm's file has none
    assert found.checkpoint_source.variant.padding == "same" and close(logits(found), logits(model))
    plain = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=9, bn_eps=1e-5)
    with pytest.raises(
        ValueError, match="bn_eps is 1e-05 in the model, 0.001 in tf_mobilenetv3_small_minimal_100; build the model"
    ):
        mnv3_fast.load_checkpoint(out, plain)


def test_a_guess_is_said_aloud(tmp_path: Path) -> None:
    """A bare file of timm's may be of two networks, one of them with SAME padding and another eps."""
    model = randomize_(timm.create_model("tf_mobilenetv3_small_075", num_classes=3), 3, 64)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    said = convert(tmp_path / "bare.pth", tmp_path / "out.safetensors", "--to", "safetensors")
    assert "is a guess by its shapes" in said and "tf_mobilenetv3_small_075 would fit, too" in said
    said = convert(
        tmp_path / "bare.pth", tmp_path / "named.safetensors", "--to", "safetensors",
        "--model", "tf_mobilenetv3_small_075",
    )  # fmt: skip
    assert "is a guess" not in said
    assert close(logits(mnv3_fast.load_checkpoint(tmp_path / "named.safetensors")), logits(model))


def test_what_a_training_was_told_is_carried(tmp_path: Path) -> None:
    """eps of timm's arguments, which its variant has otherwise, and names of classes."""
    model = randomize_(timm.create_model("mobilenetv3_small_050", num_classes=2, bn_eps=2e-3), 3, 64)
    content = {"state_dict": model.state_dict(), "arch": "mobilenetv3_small_050", "args": {"bn_eps": 2e-3}}
    torch.save(content, tmp_path / "timm.pth")
    convert(tmp_path / "timm.pth", tmp_path / "file.safetensors", "--to", "safetensors")
    assert close(logits(mnv3_fast.load_checkpoint(tmp_path / "file.safetensors")), logits(model))
    said = convert(tmp_path / "file.safetensors", tmp_path / "again.pth", "--to", "timm")
    assert "timm.create_model('mobilenetv3_small_050', bn_eps=0.002, num_classes=2)" in said
    state = {key: value.clone() for key, value in build(variant_named("mobilenetv3_small_050"), 2).state_dict().items()}
    torch.save(
        {"state_dict": state, "meta": {"variant": "mobilenetv3_small_050", "CLASSES": ["a", "b"]}},
        tmp_path / "ours.pth",
    )
    convert(tmp_path / "ours.pth", tmp_path / "mm.pth", "--to", "mmpretrain")
    assert torch.load(tmp_path / "mm.pth", weights_only=True)["meta"]["CLASSES"] == ["a", "b"]
    for name, to in (("file.safetensors", "safetensors"), ("tv.pth", "timm")):
        convert(tmp_path / "mm.pth", tmp_path / name, "--to", to, "--force")
        assert classes_of(read_checkpoint(tmp_path / name), 2) == ("a", "b")


def test_metadata_that_contradict_the_variant_are_another_graph(tmp_path: Path) -> None:
    model = parity("mobilenet_v3_small (width_mult=0.35)", 3)
    metadata = {"mnv3_fast.variant": '"mobilenet_v3_small (width_mult=0.35)"', "mnv3_fast.padding": '"same"'}
    save_file(model.state_dict(), tmp_path / "same.safetensors", metadata)
    said = convert(tmp_path / "same.safetensors", tmp_path / "out.pth", "--to", "torchvision", status=2)
    assert "has padding 'same' instead of 'symmetric'; fits: safetensors" in " ".join(said.split())
    save_file(model.state_dict(), tmp_path / "odd.safetensors", {"mnv3_fast.padding": '"half"'})
    said = convert(tmp_path / "odd.safetensors", tmp_path / "out.pth", "--to", "torchvision", status=2)
    assert """its metadata has padding = '"half"', which is none""" in " ".join(said.split())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    model = parity("mobilenetv3_small_050")
    torch.save(model.state_dict(), folder / "good.pth")
    bad = {key: value.clone() for key, value in model.state_dict().items()}
    bad["features.2.block.0.0.weight"][0] = float("nan")
    torch.save(bad, folder / "nan.pth")
    torch.save(build(variant_named("tf_mobilenetv3_small_075")).state_dict(), folder / "tf.pth")
    torch.save({key: v for key, v in model.state_dict().items() if "classifier" not in key}, folder / "backbone.pth")
    (folder / "page.pth").write_text("<html>")
    return folder


REFUSED = {
    "missing": (("none.pth", "out.pth", "--to", "timm"), 2, "there is no file"),
    "page": (("page.pth", "out.pth", "--to", "timm"), 2, "it is an HTML or XML page"),
    "NaN": (("nan.pth", "out.pth", "--to", "timm"), 2, "1 tensors have values that are not finite, such as features.2.block.0.0.weight"),
    "backbone": (("backbone.pth", "out.pth", "--to", "timm"), 2, "no known MobileNetV3 has its shapes"),
    "format": (("good.pth", "out.pth", "--to", "keras"), 2, "--to must be one of torchvision, timm, mmpretrain, safetensors"),
    "suffix": (("good.pth", "out.pth", "--to", "safetensors"), 2, "out.pth has to end with .safetensors"),
    "mmpretrain's safetensors": (("good.pth", "out.safetensors", "--to", "mmpretrain"), 2, "mmpretrain reads no safetensors"),
    "another graph": (("tf.pth", "out.pth", "--to", "mmpretrain", "--model", "tf_mobilenetv3_small_075"), 2, "has its shapes, but another graph: tf_mobilenetv3_small_075 (timm's, hidden channels scaled by ratio) has padding 'same' instead of 'symmetric'; fits: safetensors, timm"),
    "wrong name": (("good.pth", "out.pth", "--to", "timm", "--model", "mobilenetv3_small_075"), 2, "its tensors are none of mobilenetv3_small_075"),
    "unknown name": (("good.pth", "out.pth", "--to", "timm", "--model", "mobilenet"), 2, "unknown model 'mobilenet'"),
    "exists": (("good.pth", "good.pth", "--to", "timm"), 2, "exists; --force replaces it"),
    "folder": (("good.pth", ".", "--to", "timm"), 2, "is a folder, a file is wanted"),
    "long": (("good.pth", "x" * 300, "--to", "timm"), 3, "cannot be written: File name too long"),
    "no folder": (("good.pth", "none/out.pth", "--to", "timm"), 3, "cannot be written: No such file or directory"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, status, message = REFUSED[kind]
    monkeypatch.chdir(files)
    before = {name: (files / name).read_bytes() for name in os.listdir(files)}
    assert message in " ".join(convert(*arguments, status=status).split())
    assert {name: (files / name).read_bytes() for name in os.listdir(files)} == before


@pytest.mark.parametrize("fault", ["eps", "tensor"])
def test_a_wrong_conversion_is_found(fault: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the target's network has another eps; a tensor is written in another's place."""
    if fault == "eps":
        create = converting._timm_network
        monkeypatch.setattr(converting, "_timm_network", lambda variant, eps, count: create(variant, 1e-3 if eps == 1e-5 else eps, count))  # fmt: skip
        monkeypatch.setattr(converting, "_source_graph", lambda variant, network, count: network)
    else:
        write = converting._write

        def swapped(path: Path, state: dict[str, Any], metadata: Any, to: str) -> None:
            a, b = "blocks.2.1.bn1.weight", "blocks.2.1.bn1.running_var"
            write(path, {**state, a: state[b], b: state[a]}, metadata, to)

        monkeypatch.setattr(converting, "_write", swapped)
    said = " ".join(convert(files / "good.pth", tmp_path / "out.pth", "--to", "timm", status=1).split())
    assert (
        "the networks differ by" if fault == "eps" else "tensors differ from what was read, such as features.5"
    ) in said
    assert os.listdir(tmp_path) == []


def test_force_replaces(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pth"
    out.write_text("old")
    convert(files / "good.pth", out, "--to", "timm", "--force")
    assert "conv_stem.weight" in torch.load(out, weights_only=True)
    assert os.listdir(tmp_path) == ["out.pth"]


def test_without_timm(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting, "_timm", lambda: None)
    said = convert(files / "good.pth", tmp_path / "out.pth", "--to", "timm")
    assert "timm is not installed, so only tensors were compared" in " ".join(said.split())
    assert "not compared" in said and "tensors equal bit by bit\t244" in said


@pytest.mark.parametrize("out", ["out.pth", "out.safetensors"])
def test_what_libraries_raise_on_a_full_disk(
    out: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process on a full disk below, without the process."""

    def full(state: Any, path: Path, *rest: Any) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("No space") if out.endswith("safetensors") else RuntimeError("PytorchStreamWriter failed")

    monkeypatch.setattr(converting, "save_file", full)
    monkeypatch.setattr(torch, "save", full)
    assert "cannot be written" in convert(files / "good.pth", tmp_path / out, "--to", "timm", status=3)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("out", ["out.pth", "out.safetensors"])
def test_a_full_disk(out: str, files: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    result = run("convert", str(files / "good.pth"), str(tmp_path / out), "--to", "timm", preexec_fn=limit)
    assert result.returncode == 3, result.stderr
    assert "cannot be written" in result.stderr and "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == []
