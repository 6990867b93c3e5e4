"""``test``: states of other runs, and input that is not as it should be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.test_test_verb import CLASSES, here, interrupt_after, made, run_test, write_checkpoint
from tests.data.test_evaluation import network

__all__ = ["here", "made"]  # fixtures


def change_weights(here: Path) -> None:
    model = network()
    model.classifier[3].bias.data[0] += 1
    write_checkpoint(here / "small.pth", model)


def change_images(here: Path) -> None:
    (here / "set" / "val" / CLASSES[2] / "000.JPEG").unlink()


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (change_weights, [], "weights is "),
        (change_images, [], "images is "),
        (None, ["--amp"], "dtype is float32 there, autocast to bfloat16 here, way is frozen there, accelerated here"),
        (None, ["--output", "lines.jsonl"], "output is None there, /"),
    ],
    ids=["weights", "images", "amp", "output"],
)
def test_a_state_of_another_run_is_refused(
    change: Callable[[Path], None] | None, options: list[str], words: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert run_test("--state", "state.json").exit_code == 130
    kept = (here / "state.json").read_text()
    if change is not None:
        change(here)
    result = run_test("--state", "state.json", *options)
    assert result.exit_code == 2
    assert f"state.json is the state of another run: {words}" in result.stderr
    assert "--overwrite begins anew, --state names another file" in result.stderr
    assert (here / "state.json").read_text() == kept
    result = run_test("--state", "state.json", "--overwrite", "--json", *options)
    assert (result.exit_code, json.loads(result.stdout)["resumed_from"]) == (0, 0)


@pytest.mark.parametrize("text", ["", "[]", '{"kind": 1}', '{"kind": "mnv3-fast test, state 1", "about": 3}', "\xff"])
def test_what_is_no_state_is_refused(text: str, here: Path) -> None:
    (here / "state.json").write_bytes(text.encode("latin-1"))
    result = run_test("--state", "state.json")
    assert (result.exit_code, "state.json is no state of mnv3-fast test" in result.stderr) == (2, True)


def test_counts_that_cannot_be_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert run_test("--state", "state.json").exit_code == 130
    state = json.loads((here / "state.json").read_text())
    assert state["known"]["images"] == 4  # of 18
    for change in (
        {"images": 19}, {"images": -1}, {"images": "4"}, {"images": 4.5}, {"correct_top1": 5, "correct_top5": 4},
        {"correct_top5": 18}, {"not_finite": -1}, {"not_finite": None}, {"seconds": "1"}, {"seconds": None},
    ):  # fmt: skip
        (here / "state.json").write_text(json.dumps(state | {"known": state["known"] | change}))
        result = run_test("--state", "state.json")
        assert (result.exit_code, "state.json is no state of mnv3-fast test" in result.stderr) == (2, True), change


def test_lost_lines_are_not_gone_on_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert run_test("--output", "lines.jsonl").exit_code == 130
    (here / "lines.jsonl").write_text("")
    result = run_test("--output", "lines.jsonl")
    assert (result.exit_code, "lacks lines of the images that are done" in result.stderr) == (2, True)


def bad_set(kind: str, here: Path) -> None:
    folder = here / "set" / "val"
    if kind == "no folder":
        shutil.rmtree(here / "set")
    elif kind == "empty class":
        (folder / "n00000000").mkdir()
    elif kind == "fewer classes":
        shutil.rmtree(folder / CLASSES[0])
    elif kind == "label out of range":
        (here / "set" / "meta").mkdir()
        (here / "set" / "meta" / "val.txt").write_text(f"{CLASSES[0]}/000.JPEG 6\n")
    elif kind == "missing file":
        (here / "set" / "meta").mkdir()
        (here / "set" / "meta" / "val.txt").write_text(f"{CLASSES[0]}/009.JPEG 0\n")
    elif kind == "checkpoint of another network":
        (here / "small.pth").unlink()
        torch.save({"features.0.0.weight": torch.zeros(8, 3, 3, 3)}, here / "small.pth")
    elif kind == "no checkpoint":
        (here / "small.pth").unlink()


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("no folder", [], "there is no folder set/val"),
        ("empty class", [], "set/val has 1 classes without an image: n00000000"),
        ("fewer classes", [], "set/val has 5 classes, the model has 6"),
        ("label out of range", [], "val.txt, line 1: label 6 of n01440764/000.JPEG, 0 to 5 is wanted"),
        ("missing file", [], "names 1 files that are not there: set/val/n01440764/009.JPEG"),
        ("checkpoint of another network", [], "checkpoint: "),
        ("no checkpoint", [], "there is no file small.pth"),
        ("", ["--split", "test"], "there is no folder set/test"),
        ("", ["--device", "gpu"], "--device must be cpu, cuda or cuda:N, got 'gpu'"),
        ("", ["--device", "cuda:99"], "torch sees"),
        ("", ["--batch", "0"], "--batch must be at least 1, got 0"),
        ("", ["--workers", "-1"], "--workers must be at least 1, got -1"),
        ("", ["--workers", "1025"], "--workers must be at most 1024, got 1025"),
        ("", ["--amp", "--amp-dtype", "float8"], "--amp-dtype must be one of float16, bfloat16, got 'float8'"),
        ("", ["--amp-dtype", "float16"], "--amp-dtype is for --amp"),
        ("", ["--output", "set"], "--output set is a folder"),
    ],
)
def test_bad_input(kind: str, options: list[str], words: str, here: Path) -> None:
    bad_set(kind, here)
    result = run_test(*options)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stdout == ""
    assert not (here / "mnv3-fast-test").exists()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("small.pth", [], "is the checkpoint, another file is wanted"),
        (f"set/val/{CLASSES[0]}/000.JPEG", [], "is one of the images, another file is wanted"),
        ("small.json", ["--state", "./small.json"], "is --state, another file is wanted"),
    ],
)
def test_what_is_read_is_not_begun_anew(name: str, options: list[str], words: str, here: Path) -> None:
    before = (here / name).read_bytes() if (here / name).exists() else None
    result = run_test("--output", name, "--overwrite", *options)
    assert (result.exit_code, f"--output {name} {words}" in result.stderr) == (2, True), result.output
    assert before == ((here / name).read_bytes() if (here / name).exists() else None)


def test_an_unknown_model_and_a_place_that_cannot_be_written(here: Path) -> None:
    result = run_test(model="mobilenet-v9")
    assert (result.exit_code, "unknown model 'mobilenet-v9'; " in result.stderr) == (2, True)
    (here / "file").write_text("")
    result = run_test("--state", "file/state.json")
    assert (result.exit_code, "file/state.json cannot be" in result.stderr) == (2, True)
    result = run_test("--output", "file/lines.jsonl")
    assert (result.exit_code, "file/lines.jsonl cannot be written" in result.stderr) == (3, True)
    result = run_test("--output", "x" * 300)
    assert (result.exit_code, "x cannot be written: File name too long" in result.stderr) == (3, True)


def test_a_process_group_that_makes_no_sense(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    result = run_test()
    assert (result.exit_code, "WORLD_SIZE is None; torchrun sets" in result.stderr) == (2, True)
    assert os.environ["RANK"] == "0"
