"""``test``: what it prints and writes, where it goes on, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typer.testing import CliRunner, Result

from mnv3_fast.cli import app
from mnv3_fast.cli import test as verb
from mnv3_fast.data.running import Runner
from mnv3_fast.models.preprocessing import scale_and_shift
from tests.data.images import write_crops, write_labels
from tests.data.test_evaluation import CIFAR, counts, logits_of_torchvision, network, theirs

CLASSES = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331")
COUNTS = dict.fromkeys(CLASSES, 3)
SEED = 3  # of a set in which the random network is right at times
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
KEYS = {
    "model", "checkpoint", "data", "images", "classes", "top1", "top5", "correct_top1", "correct_top5", "unreadable",
    "not_finite", "images_per_second", "seconds", "resumed_from", "device", "dtype", "runs", "processes", "batch",
    "workers", "warnings",
}  # fmt: skip


def write_checkpoint(path: Path, model: nn.Module, classes: tuple[str, ...] | None = CLASSES, **meta: Any) -> Path:
    torch.save({"state_dict": model.state_dict(), "meta": meta | ({"CLASSES": classes} if classes else {})}, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of images and a checkpoint; not to be changed."""
    root = tmp_path_factory.mktemp("made")
    write_crops(root / "set" / "val", COUNTS, seed=SEED)
    write_checkpoint(root / "small.pth", network(), variant=CIFAR.name)
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where the program runs."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_test(*options: str, checkpoint: str = "small.pth", model: str = CIFAR.name) -> Result:
    arguments = [model, checkpoint, "--data", "set", "--workers", "0", "--batch", "4", *options]
    return CliRunner().invoke(app, ["test", *arguments])


@pytest.fixture(scope="module")
def expected(made: Path) -> tuple[Tensor, Tensor]:
    return logits_of_torchvision(network(), made / "set" / "val", CIFAR.preprocessing)


def test_json_is_what_torchvision_counts(here: Path, expected: tuple[Tensor, Tensor]) -> None:
    result = run_test("--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == KEYS
    top1, top5 = counts(*expected)
    assert (found["images"], found["correct_top1"], found["correct_top5"]) == (18, top1, top5)
    assert (found["top1"], found["top5"]) == (pytest.approx(100 * top1 / 18), pytest.approx(100 * top5 / 18))
    assert 0 < top1 < top5 < 18
    assert (found["unreadable"], found["not_finite"], found["warnings"], found["resumed_from"]) == ([], 0, [], 0)
    assert (found["runs"], found["dtype"], found["device"], found["classes"]) == ("frozen", "float32", "cpu", 6)
    assert found["images_per_second"] == pytest.approx(18 / found["seconds"])
    assert result.stderr == ""
    assert not (here / "mnv3-fast-test").exists()  # a complete run leaves no state


def test_table_config_path_and_files_of_labels(here: Path, expected: tuple[Tensor, Tensor]) -> None:
    write_labels(here / "set", "val")
    result = run_test(model=f"configs/mobilenet_v3/{CIFAR.name}.py")
    assert result.exit_code == 0, result.output
    rows = dict(line.split("\t") for line in result.stdout.splitlines()[1:])
    top1, top5 = counts(*expected)
    assert rows["top-1"] == f"{100 * top1 / 18:.3f}% ({top1} of 18)"
    assert rows["top-5"] == f"{100 * top5 / 18:.3f}% ({top5} of 18)"
    assert rows["computed"] == "frozen, float32 on cpu"
    assert float(rows["images/s"]) > 0


def test_workers_are_processes(here: Path, expected: tuple[Tensor, Tensor]) -> None:
    found = json.loads(run_test("--json", "--workers", "2", "--amp").stdout)
    assert (found["images"], found["workers"], found["runs"]) == (18, 2, "accelerated")
    assert found["dtype"] == "autocast to bfloat16"
    how, model = CIFAR.preprocessing, network()
    scale, shift = (values.view(3, 1, 1) for values in scale_and_shift(how))
    images = DataLoader(theirs(here / "set" / "val", how), batch_size=4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat([model(x * scale + shift).float() for x, _ in images])
    assert (found["correct_top1"], found["correct_top5"]) == counts(logits, expected[1])


def test_output_has_a_line_an_image(here: Path, expected: tuple[Tensor, Tensor]) -> None:
    assert run_test("--output", "seen/lines.jsonl").exit_code == 0
    lines = [json.loads(line) for line in (here / "seen" / "lines.jsonl").read_text().splitlines()]
    logits, labels = expected
    assert [line["label"] for line in lines] == labels.tolist()
    assert [line["class"] for line in lines] == [CLASSES[label] for label in labels]
    assert [[g["label"] for g in line["predictions"]] for line in lines] == logits.topk(5).indices.tolist()
    assert all(g["class"] == CLASSES[g["label"]] for line in lines for g in line["predictions"])
    assert set(lines[0]) == {"path", "predictions", "warnings", "error", "label", "class"}
    again = run_test("--output", "seen/lines.jsonl")
    assert (again.exit_code, "exists; --overwrite begins it anew" in again.stderr) == (2, True)
    before = (here / "seen" / "lines.jsonl").read_text()
    assert run_test("--output", "seen/lines.jsonl", "--overwrite").exit_code == 0
    assert (here / "seen" / "lines.jsonl").read_text() == before


def interrupt_after(
    calls: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException] = KeyboardInterrupt
) -> None:
    """Ctrl-C in the call of the network after so many."""
    load = verb.load_subject

    def loaded(*arguments: Any) -> Any:
        subject = load(*arguments)
        left, run = [calls], subject.runner.run

        def interrupted(images: Tensor) -> Tensor:
            left[0] -= 1
            if left[0] < 0:
                raise error
            return run(images)

        object.__setattr__(subject, "runner", Runner(interrupted, subject.runner.way))
        return subject

    monkeypatch.setattr(verb, "load_subject", loaded)


def test_ctrl_c_and_again(here: Path, expected: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        result = run_test("--output", "lines.jsonl")
    assert result.exit_code == 130
    assert "8 of 18 images are done; the same command goes on from there" in result.stderr
    state = here / "mnv3-fast-test" / f"{CIFAR.name}.json"
    assert json.loads(state.read_text())["known"]["images"] == 8
    with (here / "lines.jsonl").open("a") as file:
        file.write('{"path": "of an image that the state does not cou')  # as after a crash
    result = run_test("--output", "lines.jsonl", "--json", "--batch", "3")
    assert result.exit_code == 0, result.output
    assert f"goes on with mnv3-fast-test/{CIFAR.name}.json: 8 of 18 images are done" in result.stderr
    found = json.loads(result.stdout)
    assert (found["images"], found["resumed_from"]) == (18, 8)
    assert (found["correct_top1"], found["correct_top5"]) == counts(*expected)
    lines = [json.loads(line) for line in (here / "lines.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == expected[1].tolist()
    assert not state.exists()


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


def test_lost_lines_are_not_gone_on_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert run_test("--output", "lines.jsonl").exit_code == 130
    (here / "lines.jsonl").write_text("")
    result = run_test("--output", "lines.jsonl")
    assert (result.exit_code, "lacks lines of the images that are done" in result.stderr) == (2, True)


def test_unreadable_images_end_with_status_1(here: Path, expected: tuple[Tensor, Tensor]) -> None:
    logits, labels = expected
    place = (logits.argmax(1) == labels).nonzero()[0].item()  # one that the network is right about
    path = f"set/val/{CLASSES[place // 3]}/{place % 3:03}.JPEG"
    (here / path).write_bytes(b"")
    result = run_test("--json", "--output", "lines.jsonl")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["unreadable"] == [{"path": path, "error": "no image that PIL can read"}]
    top1, top5 = counts(logits, labels)
    assert (found["images"], found["correct_top1"], found["correct_top5"]) == (18, top1 - 1, top5 - 1)
    words = [f"{path}: no image that PIL can read", "1 of 18 images could not be read; they count as wrong"]
    assert result.stderr.splitlines() == words
    line = json.loads((here / "lines.jsonl").read_text().splitlines()[place])
    assert (line["path"], line["error"], line["predictions"]) == (path, "no image that PIL can read", [])


def test_outputs_that_are_not_finite_end_with_status_1(here: Path) -> None:
    model = network()
    model.classifier[3].bias.data[2] = float("inf")
    write_checkpoint(here / "small.pth", model)
    result = run_test("--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["not_finite"] == 18
    assert "the outputs of 18 images are not finite; they count as wrong" in result.stderr


@pytest.mark.parametrize(
    ("classes", "meta", "warning"),
    [
        (CLASSES[::-1], {}, "the folders': label 0 is n01496331 there and n01440764 here"),
        ((*CLASSES[:5], "n09999999"), {}, "label 5 is n09999999 there and n01496331 here"),
        (("tench", "goldfish", "shark", "tiger shark", "hammerhead", "ray"), {}, None),
        (CLASSES, {"variant": "mobilenet-v3-small_8xb128_in1k"}, "the checkpoint is of mobilenet-v3-small_8xb128_in1k, not"),
    ],
)  # fmt: skip
def test_classes_and_variant_of_a_checkpoint_are_compared(
    classes: tuple[str, ...], meta: dict[str, str], warning: str | None, here: Path
) -> None:
    write_checkpoint(here / "small.pth", network(), classes, **meta)
    result = run_test("--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)["warnings"]
    assert (warning is None and found == []) or (warning in found[0] and found[0] in result.stderr)


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


def test_an_unknown_model_and_a_place_that_cannot_be_written(here: Path) -> None:
    result = run_test(model="mobilenet-v9")
    assert (result.exit_code, "unknown model 'mobilenet-v9'; " in result.stderr) == (2, True)
    (here / "file").write_text("")
    result = run_test("--state", "file/state.json")
    assert (result.exit_code, "file/state.json cannot be" in result.stderr) == (2, True)
    result = run_test("--output", "file/lines.jsonl")
    assert (result.exit_code, "file/lines.jsonl cannot be written" in result.stderr) == (3, True)


def test_a_process_group_that_makes_no_sense(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    result = run_test()
    assert (result.exit_code, "WORLD_SIZE is None; torchrun sets" in result.stderr) == (2, True)
    assert os.environ["RANK"] == "0"
