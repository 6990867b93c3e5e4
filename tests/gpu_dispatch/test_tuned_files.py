"""A file of measured choices that is not as it should be, or not where: ignored with one warning."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnv3_fast.gpu import tuned
from mnv3_fast.gpu.keyed_file import KEY_FIELDS
from tests.gpu_dispatch.common import CUDA, Evil, changed
from tests.gpu_dispatch.measured import BLOCK, FOUND, LAYER, choices


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A written file."""
    return choices(tmp_path / "below" / "mnv3_fast").store(CUDA, FOUND)


def item(**values: Any) -> Callable[[bytes], bytes]:
    return changed(lambda value: value["choices"][1].update(values))


SIZES = "{} must have {} whole numbers that are not negative"
NUMBER = "{} must be a whole number that is not negative"
FIELDS = (
    "a choice must have the fields op, dtype, shape, kernel, window, activation, hidden, squeeze, out, sums, variant"
)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-9], "it is no JSON"),
        (lambda content: b"", "it is no JSON"),
        (lambda content: b"\xff\xfe" + content, "it is no JSON"),
        (lambda content: b"[" * 900000, "it is no JSON"),
        (lambda content: b'{"a":' * 90000, "it is no JSON"),
        (lambda content: pickle.dumps(Evil()), "it is no JSON"),
        (lambda content: content + b" " * tuned.FILE.most_bytes, "it has more than 1048576 bytes"),
        (lambda content: b"[]", "the file must have the fields format, key, choices"),
        (changed(lambda v: v.update(more=1)), "the file must have the fields format, key, choices"),
        (changed(lambda v: v.update(format=1.0)), "format is no number"),
        (changed(lambda v: v.update(format=2)), "its format is 2, not 1"),
        (changed(lambda v: v["key"].update(device="NVIDIA Other")), "it is of another device or version"),
        (changed(lambda v: v["key"].update(sources="cd" * 32)), "it is of another device or version"),
        (changed(lambda v: v["key"].pop("torch")), f"key must have the fields {', '.join(KEY_FIELDS)}"),
        (changed(lambda v: v["key"].update(torch=[2])), "key has a value that is no string"),
        (changed(lambda v: v.update(choices={})), "choices is no list"),
        (changed(lambda v: v["choices"].append("cuda")), FIELDS),
        (changed(lambda v: v["choices"][0].pop("sums")), FIELDS),
        (item(command="rm"), FIELDS),
        (changed(lambda v: v["choices"].append(v["choices"][0])), "a question has two answers"),
        (changed(lambda v: v["choices"].append(v["choices"][0] | {"variant": "cuda"})), "a question has two answers"),
        (changed(lambda v: v["choices"].extend(v["choices"] * 500)), "there are more than 1000 choices"),
        (item(op="pointwise_conv"), "op must be one of depthwise_conv, inverted_residual"),
        (item(op=["depthwise_conv"]), "op must be one of depthwise_conv, inverted_residual"),
        (item(dtype="torch.float16"), "dtype must be one of float32, float16, bfloat16"),
        (item(variant="cutlass"), "variant must be one of triton, cuda"),
        (item(variant=None), "variant must be one of triton, cuda"),
        (item(shape=[1, 96, 7]), SIZES.format("shape", 4)),
        (item(shape=[1, 96, 7, 7.0]), SIZES.format("shape", 4)),
        (item(shape=[1, 96, 7, float("nan")]), SIZES.format("shape", 4)),
        (item(shape=[1, 96, 7, True]), SIZES.format("shape", 4)),
        (item(shape={"N": 1}), SIZES.format("shape", 4)),
        (item(kernel=[5, "5"]), SIZES.format("kernel", 2)),
        (item(kernel=[5, 10**400]), SIZES.format("kernel", 2)),
        (item(window=[-1] * 8), SIZES.format("window", 8)),
        (item(window=[[1]] * 8), SIZES.format("window", 8)),
        (item(activation=float("inf")), NUMBER.format("activation")),
        (item(activation="relu"), NUMBER.format("activation")),
        (item(hidden=-8), NUMBER.format("hidden")),
        (item(squeeze=2**31), NUMBER.format("squeeze")),
        (item(out=None), NUMBER.format("out")),
        (item(sums=0), "sums is neither true nor false"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_warning(
    path: Path, damage: Callable[[bytes], bytes], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(damage(path.read_bytes()))
    found = choices(path.parent)
    for device in (CUDA, CUDA, torch.device("cuda", 1)):
        assert [found.lookup(question, device) for question in (LAYER, BLOCK)] == [None, None]
    assert found.store(CUDA, {LAYER: "cuda"}) == path  # which is told of no more, and puts it right
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", f"{path} is ignored: {message}")]
    assert [choices(path.parent).lookup(question, CUDA) for question in (LAYER, BLOCK)] == ["cuda", None]
    assert len(caplog.records) == 1
    assert not Path("/tmp/mnv3-fast-evil").exists()


def test_the_file_of_another_device_is_not_believed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = choices(path.parent, "NVIDIA Other")
    assert other.lookup(LAYER, CUDA) is None
    assert not caplog.records  # it has another name, as that of an older version has
    path.rename(other.path_of(CUDA))
    again = choices(path.parent, "NVIDIA Other")
    assert again.lookup(LAYER, CUDA) is None
    assert again.lookup(BLOCK, CUDA) is None
    (record,) = caplog.records
    assert record.getMessage() == f"{other.path_of(CUDA)} is ignored: it is of another device or version"


def test_what_is_no_file_is_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.unlink()
    path.mkdir()
    found = choices(path.parent)
    assert [found.lookup(LAYER, CUDA) for _ in range(3)] == [None] * 3
    assert [r.getMessage() for r in caplog.records] == [f"{path} is ignored: it is no file"]
    for write in (lambda: found.store(CUDA, FOUND), lambda: found.forget(CUDA)):
        with pytest.raises(OSError):
            write()
    assert found.lookup(LAYER, CUDA) == "triton"  # in this process
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".mnv3")] == []


def test_links_are_read_and_replaced(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "elsewhere.json"
    path.rename(target)
    path.symlink_to(target)
    assert choices(path.parent).lookup(LAYER, CUDA) == "triton"
    before = target.read_bytes()
    choices(path.parent).store(CUDA, {LAYER: "cuda"})
    assert not path.is_symlink()
    assert target.read_bytes() == before  # what a link leads to is not ours to write
    path.unlink()
    for there in ("nowhere.json", path.name):  # dangling, and a link to itself
        path.symlink_to(path.parent / there)
        assert choices(path.parent).lookup(LAYER, CUDA) is None
        path.unlink()
    assert not caplog.records
    path.symlink_to("/dev/zero")
    assert choices(path.parent).lookup(LAYER, CUDA) is None
    os.unlink(path)
    os.mkfifo(path)
    assert choices(path.parent).lookup(LAYER, CUDA) is None
    assert [r.getMessage() for r in caplog.records] == [f"{path} is ignored: it is no file"] * 2


def test_a_file_that_cannot_be_read_is_one_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any, **keywords: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root reads everything
    found = choices(path.parent)
    assert [found.lookup(LAYER, CUDA) for _ in range(3)] == [None] * 3
    assert [r.getMessage() for r in caplog.records] == [f"{path} is ignored: it cannot be read: Permission denied"]
