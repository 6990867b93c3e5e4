"""Checkpoints: names of mmpretrain and torchvision, what is refused, and that nothing in a file is executed."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from mnv3_fast.checkpoints import load_into, read_checkpoint, torchvision_state
from mnv3_fast.checkpoints.files import state_of
from mnv3_fast.checkpoints.keys import naming_of
from mnv3_fast.models.variants import VARIANTS, build
from mnv3_fast.testing.parity import randomize_

SMALL = VARIANTS["mobilenet-v3-small-050_8xb128_in1k"]


@pytest.fixture(scope="module")
def model() -> Any:
    return randomize_(build(SMALL), 3, 64)


def mmpretrain_file(model: Any, path: Path) -> Path:
    """A file as mmpretrain writes it, under its names."""
    state = model.state_dict()
    renamed = OrderedDict(
        (theirs, state[ours].clone()) for ours, theirs in naming_of(model.state_dict()).names("mmpretrain").items()
    )
    torch.save({"meta": {"CLASSES": [f"name {i}" for i in range(1000)]}, "state_dict": renamed}, path)
    return path


def test_mmpretrain_names_are_those_of_its_files(model: Any) -> None:
    """Names as they stand in mmpretrain's published files."""
    names = naming_of(model.state_dict()).names("mmpretrain")
    assert set(names) == set(model.state_dict())
    assert names["features.0.0.weight"] == "backbone.layer0.conv.weight"
    assert names["features.1.block.0.0.weight"] == "backbone.layer1.depthwise_conv.conv.weight"
    assert names["features.1.block.1.fc1.bias"] == "backbone.layer1.se.conv1.conv.bias"
    assert names["features.1.block.2.1.running_var"] == "backbone.layer1.linear_conv.bn.running_var"
    assert names["features.2.block.0.1.weight"] == "backbone.layer2.expand_conv.bn.weight"
    assert names["features.2.block.2.0.weight"] == "backbone.layer2.linear_conv.conv.weight"
    assert names["features.4.block.2.fc2.weight"] == "backbone.layer4.se.conv2.conv.weight"
    assert names["features.12.0.weight"] == "backbone.layer12.conv.weight"
    assert names["classifier.0.weight"] == "head.layers.0.fc.weight"
    assert names["classifier.3.bias"] == "head.layers.1.fc.bias"


@pytest.mark.parametrize("kind", ["mmpretrain", "torchvision", "module.", "network.", "safetensors", "file URL"])
def test_reads(kind: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    path = tmp_path / ("file.safetensors" if kind == "safetensors" else "file.pth")
    if kind in ("mmpretrain", "file URL"):
        mmpretrain_file(model, path)
    elif kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        prefix = kind if kind.endswith(".") else ""
        torch.save({prefix + key: value for key, value in model.state_dict().items()}, path)
    fresh = build(SMALL)
    source = path.as_uri() if kind == "file URL" else path
    fresh.load_state_dict(torchvision_state(state_of(read_checkpoint(source)), fresh))
    for key, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def of_zip(**entries: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/"), content)
    return data.getvalue()


def halved(saved: bytes) -> bytes:
    return saved[: len(saved) // 2]


PAGE = b"<!DOCTYPE html><html><title>404 Not Found</title></html>"
DAMAGED = {
    "empty": ("pth", lambda state: b"", "it is empty"),
    "text": ("pth", lambda state: b"no checkpoint\n" * 9, "is no checkpoint, or is damaged"),
    "HTML page": ("pth", lambda state: PAGE, "it is an HTML or XML page"),
    "truncated": ("pth", lambda state: halved(saved(state)), "is damaged: "),
    "truncated old": ("pth", lambda state: halved(saved(state, old=True)), "bytes"),
    "one wrong byte": ("pth", lambda state: flipped(saved(state)), "is damaged: Bad CRC-32"),
    "list": ("pth", lambda state: saved([1, 2]), "holds a list, expected a dictionary of tensors"),
    "zip of something else": ("pth", lambda state: of_zip(readme=b"hello"), "its first entry is 'readme'"),
    "Keras": ("pth", lambda state: of_zip(**{"model.weights.h5": b""}), "archive of Keras, .*cannot be read yet"),
    "TorchScript": ("pth", lambda state: of_zip(a__data_pkl=b"", **{"a/constants.pkl": b""}), "a TorchScript archive, which holds code"),
    "HDF5": ("h5", lambda state: b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5, as Keras writes it, which cannot be read yet"),
    "gzip": ("pth", lambda state: gzip.compress(saved(state)), "compressed with gzip"),
    "git LFS": ("pth", lambda state: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of git LFS"),
    "tar": ("pth", lambda state: b"storages".ljust(257, b"\0") + b"ustar" + bytes(250), "it is a tar archive"),
    "safetensors under another name": ("pth", lambda state: save(state), "its name has to end with .safetensors"),
    "truncated safetensors": ("safetensors", lambda state: halved(save(state)), "is damaged: "),
    "empty safetensors": ("safetensors", lambda state: b"", "it is empty"),
    "safetensors that is a page": ("safetensors", lambda state: PAGE, "ends with .safetensors, but it is an HTML"),
    "safetensors that is a zip": ("safetensors", lambda state: saved(state), "but it is a zip archive, as torch.save writes"),
    "safetensors that is a pickle": ("safetensors", lambda state: saved(state, old=True), "but it is a pickle, as torch.save writes"),
    "header of safetensors that claims much": ("safetensors", lambda state: b"\xff" * 7 + b"\x7f{" + bytes(99), "is damaged: "),
}  # fmt: skip


def saved(value: Any, old: bool = False) -> bytes:
    data = io.BytesIO()
    torch.save(value, data, _use_new_zipfile_serialization=not old)
    return data.getvalue()


def flipped(data: bytes) -> bytes:
    place = len(data) // 2  # in the weights
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_and_mislabelled_files(damage: str, model: Any, tmp_path: Path) -> None:
    suffix, content, message = DAMAGED[damage]
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(content(model.state_dict()))
    fresh = build(SMALL)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(ValueError, match=rf"checkpoint: .*file\.{suffix} .*{message}"):
        load_into(fresh, path)
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint: there is no file .*, it is a folder"):
        read_checkpoint(tmp_path)


def change(state: dict[str, torch.Tensor], what: str) -> dict[str, torch.Tensor]:
    state = dict(state)
    if what == "missing":
        del state["features.0.0.weight"]
    elif what == "shape":
        state["classifier.3.bias"] = torch.zeros(10)
    elif what == "more":
        state["extra"] = torch.zeros(1)
    else:
        state = {f"encoder.{key}": value for key, value in state.items()}
    return state


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "checkpoint: features.0.0.weight is missing"),
        ("shape", r"checkpoint: classifier.3.bias is \[10\], the model's is \[1000\]"),
        ("more", "checkpoint: extra has no place in the model"),
        (
            "foreign",
            "checkpoint: unknown names .such as encoder.features.0.0.weight.; those of torchvision, timm, mmpretrain fit",
        ),
    ],
)
def test_what_does_not_fit(what: str, message: str, model: Any) -> None:
    with pytest.raises(ValueError, match=message):
        torchvision_state(change(model.state_dict(), what), model)


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"state_dict": {"a": 1}}, {"epoch": 3}])
def test_no_state(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="checkpoint: it holds no state_dict"):
        state_of(content)


@pytest.mark.parametrize("content", [b"\x80\x02.", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R."])
def test_made_up_pickles(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint: .*file\.pth"):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize("kind", ["meta", "sparse", "complex"])
def test_tensors_of_another_kind(kind: str, model: Any) -> None:
    state = dict(model.state_dict())
    weight = state["classifier.3.weight"]
    state["classifier.3.weight"] = {
        "meta": weight.to("meta"), "sparse": weight.to_sparse(), "complex": weight.to(torch.complex64)
    }[kind]  # fmt: skip
    with pytest.raises(ValueError, match="classifier.3.weight is no dense tensor of real numbers"):
        torchvision_state(state, model)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_weights_that_are_no_floating_point_numbers(dtype: torch.dtype, model: Any) -> None:
    """torch would cast them, and a quantized file would load as nonsense."""
    state = dict(model.state_dict())
    state["classifier.3.weight"] = state["classifier.3.weight"].to(dtype)
    words = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"checkpoint: classifier.3.weight is {words}, no floating-point tensor"):
        torchvision_state(state, model)


def test_files_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for i, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        torch.save({"x": torch.tensor(i)}, tmp_path / folder / "best.pth")
        assert read_checkpoint((tmp_path / folder / "best.pth").as_uri())["x"] == i
