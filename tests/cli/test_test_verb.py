"""``test``: what it prints and writes, where it goes on, and what it refuses."""

from __future__ import annotations

import json
import shutil
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
from mnv3_fast.models.variants import find_variant
from tests.data.images import write_crops, write_labels
from tests.data.test_evaluation import CIFAR, counts, logits_of_torchvision, network, theirs

CLASSES = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331")
SMALL = "mobilenet-v3-small_8xb128_in1k"
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
    ("classes", "warning"),
    [
        (CLASSES[::-1], "the folders': label 0 is n01496331 there and n01440764 here"),
        ((*CLASSES[:5], "n09999999"), "label 5 is n09999999 there and n01496331 here"),
        (("tench", "goldfish", "shark", "tiger shark", "hammerhead", "ray"), None),
    ],
)
def test_classes_of_a_checkpoint_are_compared(classes: tuple[str, ...], warning: str | None, here: Path) -> None:
    write_checkpoint(here / "small.pth", network(), classes)
    result = run_test("--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)["warnings"]
    assert (warning is None and found == []) or (warning in found[0] and found[0] in result.stderr)


def test_a_checkpoint_of_a_variant_of_the_same_shapes_is_told(here: Path) -> None:
    write_checkpoint(here / "small.pth", network(find_variant(SMALL)), variant="mobilenet_v3_small")
    result = run_test("--json", model=SMALL)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["warnings"] == [
        f"the checkpoint is of mobilenet_v3_small, not of {SMALL}: padding, eps and preprocessing may differ"
    ]
