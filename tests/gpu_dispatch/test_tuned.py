"""The file of what was measured: written as a whole, validated field by field, ignored where it is not as it should."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mnv3_fast.gpu import choice, counts, cuda_library, first_use, keyed_file, tuned
from mnv3_fast.gpu.choice import Question
from mnv3_fast.gpu.counts import Properties
from mnv3_fast.gpu.tuned import Choices
from tests.gpu_dispatch.common import CUDA
from tests.gpu_dispatch.measured import BLOCK, FOUND, LAYER, OTHER, choices, key_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A written file."""
    return choices(tmp_path / "below" / "mnv3_fast").store(CUDA, FOUND)


def test_another_process_finds_what_was_stored(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = choices(path.parent)
    assert [found.lookup(question, CUDA) for question in (LAYER, BLOCK, OTHER)] == ["triton", "cuda", None]
    assert found.lookup(LAYER, torch.device("cuda", 1)) == "triton"  # of the same kind
    for field in dataclasses.fields(Question):
        value = {"op": "inverted_residual", "dtype": torch.float32, "shape": (2, 64, 56, 56), "kernel": (5, 5)}.get(
            field.name, (2, 2, 1, 1, 1, 1, 1, 1) if field.name == "window" else 3
        )
        assert found.lookup(dataclasses.replace(LAYER, **{field.name: value}), CUDA) is None, field.name
    assert sorted(p.name for p in path.parent.iterdir()) == [".tuned.lock", path.name]  # nothing temporary is left
    assert not caplog.records


def test_what_is_measured_again_replaces_what_was_kept(path: Path) -> None:
    found = choices(path.parent)
    assert found.store(CUDA, {LAYER: None, OTHER: "cuda"}) == path
    for each in (found, choices(path.parent)):
        assert [each.lookup(question, CUDA) for question in (LAYER, BLOCK, OTHER)] == [None, "cuda", "cuda"]


def test_the_file_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, reads = choices(path.parent), []
    load = tuned.KeyedFile.load
    monkeypatch.setattr(tuned.KeyedFile, "load", lambda *args: reads.append(1) or load(*args))
    answers: list[Any] = []
    work = [
        threading.Thread(target=lambda: answers.extend(found.lookup(LAYER, CUDA) for _ in range(9))) for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert answers == ["triton"] * 36
    assert reads == [1]


def test_a_question_has_all_its_fields_in_the_file(path: Path) -> None:
    assert set(tuned.FIELDS) == {field.name for field in dataclasses.fields(Question)} | {"variant"}
    kept = json.loads(path.read_text())["choices"]
    assert [set(item) for item in kept] == [set(tuned.FIELDS)] * 2


def test_forget(path: Path) -> None:
    found = choices(path.parent)
    assert found.lookup(LAYER, CUDA) == "triton"
    assert found.forget(CUDA) == path
    assert not path.exists()
    assert found.lookup(LAYER, CUDA) is None
    assert found.forget(CUDA) == path  # there is nothing, which is fine


def test_without_a_place_nothing_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    nameless = Choices(lambda device: key_of(device) | {"triton": ""}, tmp_path)
    for found, error in (
        (choices(None), "no home directory"),
        (choices(tmp_path / "file" / "below"), "Not a directory"),
        (nameless, "without Triton"),
    ):
        assert found.lookup(LAYER, CUDA) is None
        with pytest.raises(OSError, match=error):
            found.store(CUDA, FOUND)
        assert found.lookup(LAYER, CUDA) == "triton"  # in this process
    assert not caplog.records


def test_a_read_only_folder(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        if os.access(path.parent, os.W_OK):
            pytest.skip("root writes everywhere")
        with pytest.raises(PermissionError):
            choices(path.parent).store(CUDA, {LAYER: "cuda"})
        assert choices(path.parent).lookup(LAYER, CUDA) == "triton"
    finally:
        path.parent.chmod(0o700)


def test_a_write_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        choices(path.parent).store(CUDA, {LAYER: "cuda"})
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == [".tuned.lock", path.name]


def numbered(start: int, count: int) -> dict[Question, str]:
    """Different questions, each as long in the file as one can be."""
    most = tuned.MOST
    last = dataclasses.replace(BLOCK, window=(most,) * 8, kernel=(most,) * 2, hidden=most, squeeze=most, out=most)
    return {
        dataclasses.replace(last, shape=(most - i, most, most, most)): "triton" for i in range(start, start + count)
    }


def test_the_file_stays_small(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = choices(tmp_path)
    found.store(CUDA, numbered(0, 10))
    path = found.store(CUDA, numbered(10, tuned.MOST_CHOICES - 1))
    assert path.stat().st_size <= tuned.FILE.most_bytes
    again = choices(tmp_path)
    kept = [again.lookup(question, CUDA) for question in numbered(0, tuned.MOST_CHOICES + 9)]
    assert kept == [None] * 9 + ["triton"] * tuned.MOST_CHOICES  # the oldest went
    assert not caplog.records


def _store(folder: Path, first: int) -> None:
    found = choices(folder)
    for i in range(20):
        found.store(CUDA, numbered(first + i, 1))


def test_two_processes_lose_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = multiprocessing.get_context("fork")
    work = [context.Process(target=_store, args=(tmp_path, first)) for first in (0, 20)]
    for process in work:
        process.start()
    for process in work:
        process.join()
        assert process.exitcode == 0
    found = choices(tmp_path)
    assert {found.lookup(question, CUDA) for question in numbered(0, 40)} == {"triton"}
    assert not caplog.records


def test_the_library_keeps_it_beside_the_first_use_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(first_use, "describe", lambda device: ("NVIDIA Test", "9.0"))
    tuned.choices.cache_clear()
    try:
        assert tuned.lookup(LAYER, CUDA) is None
        path = tuned.choices().store(CUDA, FOUND)
        assert tuned.lookup(LAYER, CUDA) == "triton"
    finally:
        tuned.choices.cache_clear()
    assert path.parent == tmp_path / "mnv3_fast" == keyed_file.cache_folder()
    assert path.name.startswith("tuned-")
    key = json.loads(path.read_text())["key"]
    assert key == first_use.key_of("NVIDIA Test", "9.0")
    assert key["torch"] == torch.__version__
    assert len(key["sources"]) >= 64


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Choices:
    """A GPU with CUDA kernels that passed their check, by counting better everywhere."""
    found = choices(tmp_path)
    monkeypatch.setattr(tuned, "choices", lambda: found)
    monkeypatch.setattr(cuda_library, "unusable_reason", lambda *args: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(first_use, "usable", lambda *args: True)
    monkeypatch.setattr(counts, "properties", lambda device: Properties(90, 132, 1.7e9, 4e12))
    monkeypatch.setattr(counts, "better", lambda question, gpu: "cuda")
    return found


def test_what_was_measured_is_chosen(gpu: Choices, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "mnv3_fast")
    assert choice.reason(LAYER, CUDA) == ("cuda", "counted")
    gpu.store(CUDA, FOUND)
    assert choice.reason(LAYER, CUDA) == ("triton", "tuned")
    assert choice.reason(OTHER, CUDA) == ("cuda", "counted")
    monkeypatch.setattr(first_use, "usable", lambda *args: False)  # what was measured does not outlive a failed check
    assert choice.reason(LAYER, CUDA) == ("triton", "switched off")
    gpu.store(CUDA, {LAYER: "cuda"})
    assert choice.choose(LAYER, CUDA) == "triton"
    assert not caplog.records


def test_a_corrupt_file_leaves_the_counted_choice(
    gpu: Choices, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.path_of(CUDA).write_text('{"format": 1')
    assert [choice.reason(question, CUDA) for question in (LAYER, OTHER)] == [("cuda", "counted")] * 2
    (record,) = caplog.records
    assert record.levelname == "WARNING"
