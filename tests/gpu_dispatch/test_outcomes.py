"""The file of the first-use check: written as a whole, validated field by field, ignored where it is not as it should."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnv3_fast.gpu import keyed_file, outcomes
from mnv3_fast.gpu.first_use import DTYPES, KERNELS, Checker
from mnv3_fast.gpu.outcomes import Outcome
from tests.gpu_dispatch.common import CUDA, KIND, Evil, Stand, changed

NAMES = tuple(str(dtype)[6:] for dtype in DTYPES)
KEY = dict(zip(keyed_file.KEY_FIELDS, ("NVIDIA Test", "9.0", "2.15.0", "3.9.0", "1.0", "ab" * 32, ""), strict=True))
FOUND = [
    Outcome("stem_conv", "float16", True, 0.0004, 0.005),
    Outcome("depthwise_conv", "float32", False, 0.2, 1e-6, "max_error 0.2, limit 1e-06"),
    Outcome("squeeze_excite", "bfloat16", False, reason="RuntimeError: no"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A written file."""
    path = outcomes.path_of(tmp_path / "below" / "mnv3_fast", KEY)
    assert outcomes.write(path, KEY, FOUND)
    return path


def read(path: Path) -> list[Outcome]:
    return outcomes.read(path, KEY, KERNELS, NAMES)


def test_round_trip(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(path) == FOUND
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary is left
    assert outcomes.write(path, KEY, FOUND[:1])
    assert read(path) == FOUND[:1]
    assert read(path.with_name("none.json")) == []
    assert not caplog.records


def test_another_key_is_another_file_and_not_believed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mnv3_fast")
    for name in keyed_file.KEY_FIELDS:
        other = KEY | {name: "other"}
        assert outcomes.path_of(path.parent, other) != path
        assert outcomes.read(path, other, KERNELS, NAMES) == []
    assert {(r.levelname, r.getMessage()) for r in caplog.records} == {
        ("DEBUG", f"{path} is ignored: it is of another device or version")
    }


def outcome(**fields: Any) -> Callable[[bytes], bytes]:
    return changed(lambda value: value["outcomes"][0].update(fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-9], "it is no JSON"),
        (lambda content: b"", "it is no JSON"),
        (lambda content: b"\xff\xfe" + content, "it is no JSON"),
        (lambda content: b"[" * 60000, "it is no JSON"),
        (lambda content: pickle.dumps(Evil()), "it is no JSON"),
        (lambda content: content + b" " * outcomes.FILE.most_bytes, "it has more than 65536 bytes"),
        (lambda content: b"[]", "the file must have the fields format, key, outcomes"),
        (changed(lambda v: v.update(more=1)), "the file must have the fields format, key, outcomes"),
        (changed(lambda v: v.update(format="1")), "format is no number"),
        (changed(lambda v: v.update(format=True)), "format is no number"),
        (
            changed(lambda v: v["key"].pop("torch")),
            "key must have the fields device, capability, torch, triton, mnv3_fast, sources, library",
        ),
        (changed(lambda v: v["key"].update(torch=2)), "key has a value that is no string"),
        (changed(lambda v: v.update(outcomes={})), "outcomes is no list"),
        (
            changed(lambda v: v["outcomes"].append(3)),
            "an outcome must have the fields kernel, dtype, passed, error, limit, reason",
        ),
        (changed(lambda v: v["outcomes"].append(v["outcomes"][0])), "a kernel has two outcomes"),
        (outcome(kernel="network"), "an outcome is of no kernel or dtype that exists"),
        (outcome(kernel=["stem_conv"]), "an outcome is of no kernel or dtype that exists"),
        (outcome(dtype="float64"), "an outcome is of no kernel or dtype that exists"),
        (outcome(passed=1), "passed is neither true nor false"),
        (outcome(limit=10**400), "error and limit must be numbers that are not negative, or null"),
        (outcome(error=-1), "error and limit must be numbers that are not negative, or null"),
        (outcome(error=float("nan")), "error and limit must be numbers that are not negative, or null"),
        (outcome(limit=True), "error and limit must be numbers that are not negative, or null"),
        (outcome(limit="1"), "error and limit must be numbers that are not negative, or null"),
        (outcome(error=0.006), "an outcome that passed has an error above its limit, or a reason"),
        (outcome(error=None), "an outcome that passed has an error above its limit, or a reason"),
        (outcome(reason="x"), "an outcome that passed has an error above its limit, or a reason"),
        (outcome(passed=False), "an outcome that did not pass has no reason"),
        (outcome(passed=False, reason="a\nWARNING b"), "an outcome that did not pass has no reason"),
        (outcome(passed=False, reason="x" * 1001), "an outcome that did not pass has no reason"),
    ],
)
def test_a_corrupt_file_is_ignored_with_a_warning(
    path: Path, damage: Callable[[bytes], bytes], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(damage(path.read_bytes()))
    assert read(path) == []
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", f"{path} is ignored: {message}")]
    assert not Path("/tmp/mnv3-fast-evil").exists()


def test_another_format_is_ignored(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mnv3_fast")
    path.write_bytes(changed(lambda v: v.update(format=2))(path.read_bytes()))
    assert read(path) == []
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("DEBUG", f"{path} is ignored: its format is 2, not 1")
    ]


def test_a_damaged_file_is_checked_again_and_replaced(tmp_path: Path) -> None:
    half = torch.float16

    def asked(stand: Stand) -> bool:
        return Checker(stand, lambda device: KIND, tmp_path).usable("stem_conv", CUDA, half)

    assert asked(Stand())
    (path,) = tmp_path.iterdir()
    path.write_text("{")
    stand = Stand(stem_conv=lambda x: x + 1)
    assert not asked(stand)
    assert stand.calls
    assert not asked(Stand())


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    checker = Checker(Stand(), lambda device: KIND, tmp_path / "file" / "below")
    assert checker.usable("stem_conv", CUDA, torch.float16)
    assert checker.usable("squeeze_excite", CUDA, torch.float16)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"{tmp_path}/file/below/first_use-")
    assert record.getMessage().endswith(
        ".json cannot be written, so the kernels are checked again in each process: Not a directory"
    )


def test_a_write_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert not outcomes.write(path, KEY, [])
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    monkeypatch.undo()
    assert read(path) == FOUND


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert keyed_file.cache_folder() == tmp_path / "home" / ".cache" / "mnv3_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert keyed_file.cache_folder() == tmp_path / "cache" / "mnv3_fast"


def test_the_hash_is_of_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = outcomes.sources_hash()
    package = Path(outcomes.__file__).parent.parent
    copy = tmp_path / "mnv3_fast"
    for source in [
        *package.glob("gpu/*.py"),
        *package.glob("ops/*/triton_kernel.py"),
        *package.glob("ops/*/cuda_*.py"),
    ]:
        target = copy / source.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    monkeypatch.setattr(outcomes, "__file__", str(copy / "gpu" / "outcomes.py"))
    assert outcomes.sources_hash() == before
    kernels = [f"{kernel}/triton_kernel.py" for kernel in KERNELS]
    for kernel in [*kernels, "depthwise_conv/cuda_kernel.py"]:
        with (copy / "ops" / kernel).open("a") as file:
            file.write("#")
        assert outcomes.sources_hash() != before
        before = outcomes.sources_hash()
