"""What cannot be trained is refused with the reason, and nothing is written over what is there."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner, Result

from mnv3_fast.checkpoints import read_checkpoint
from mnv3_fast.cli import app
from mnv3_fast.training import Diverged, train
from mnv3_fast.training.loop import Trainer
from mnv3_fast.training.work_dir import WorkDir, write_checkpoint
from tests.training.photos import PHOTOS, write_photos
from tests.training.runs import CIFAR, RECIPE, log_of, settings_of, write_recipe

BRIEF = RECIPE.replace("epochs = 2", "epochs = 1").replace("warmup_epochs = 1", "").replace("average = 2", "")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), train=4, val=2, classes=2)


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(photos, tmp_path / "data"))


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def refused(result: Result, reason: str, status: int = 2) -> None:
    assert result.exit_code == status, result.output
    assert reason in " ".join(result.stderr.split())
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["mobilenet"], "unknown model 'mobilenet'; "),
        ([CIFAR, "--recipe", "best"], "recipe: 'best' is unknown; there are mmpretrain, mmpretrain_cifar10"),
        (["none.toml"], "recipe: there is no file none.toml"),
        ([CIFAR, "--data", "nowhere"], "data: there is no folder nowhere/train"),
        ([CIFAR, "--epochs", "0"], "--epochs must be at least 1, got 0"),
        ([CIFAR, "--workers", "-1"], "--workers must be from 0 to 1024, got -1"),
        ([CIFAR, "--workers", "1025"], "--workers must be from 0 to 1024, got 1025"),
        ([CIFAR, "--data", "x" * 300], "File name too long"),
        ([CIFAR, "--device", "cuda:x"], "device: 'cuda:x' is none, cpu, cuda or cuda:N is wanted"),
        ([CIFAR, "--lr", "-1"], "recipe: optimizer.lr must be finite and at least 0, got -1.0"),
        ([CIFAR, "--device", "tpu"], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
        ([CIFAR, "--amp-dtype", "float16"], "--amp-dtype is for --amp"),
        ([CIFAR, "--amp", "--amp-dtype", "float16", "--device", "cpu"], "--amp-dtype float16 is for GPUs"),
        ([CIFAR, "--average", "2", "--no-validate"], "an average of the best checkpoints needs validation"),
    ],
)
def test_arguments(arguments: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(call(*arguments), reason)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_and_a_model_that_do_not_fit(tmp_path: Path) -> None:
    with_model = write_recipe(tmp_path)
    refused(call(with_model, "--recipe", "mmpretrain"), "is a recipe, --recipe is another")
    other = "mobilenet-v3-small_8xb128_in1k"
    refused(call(other, "--recipe", with_model), f"is for {CIFAR}, not for {other}")
    without = write_recipe(tmp_path, RECIPE.replace(f'model = "{CIFAR}"', ""))
    refused(call(without), "names no model")


def one_class(data: Path) -> None:
    shutil.rmtree(data / "train" / PHOTOS[0])


def other_classes(data: Path) -> None:
    (data / "val" / PHOTOS[0]).rename(data / "val" / "dog")


def fewer_in_val(data: Path) -> None:
    shutil.rmtree(data / "val" / PHOTOS[0])


def no_val(data: Path) -> None:
    shutil.rmtree(data / "val")


def few(data: Path) -> None:
    for path in data.glob("train/*/[123].jpg"):
        path.unlink()


def broken(data: Path) -> None:
    for path in data.glob("train/*/*.jpg"):
        path.write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (one_class, "has 1 class, at least 2 are wanted"),
        (other_classes, "train and val have other classes: astronaut, dog only in one of them"),
        (fewer_in_val, "/val has 1 classes, the model has 2"),
        (no_val, "there is no folder"),
        (few, "a batch has 1 x 4 images, there are 2 to train with"),
        (broken, ".jpg: no image that PIL can read"),
    ],
)
def test_data(spoil: Callable[[Path], None], reason: str, data: Path, tmp_path: Path) -> None:
    spoil(data)
    with pytest.raises((ValueError, FileNotFoundError), match=reason.replace(".", "\\.")):
        train(settings_of(write_recipe(tmp_path, BRIEF), data, tmp_path / "work"))
    assert not (tmp_path / "work" / "last.pth").exists()


def test_a_folder_with_a_run_is_left_alone(photos: Path, tmp_path: Path) -> None:
    """Without --resume; with another seed, recipe or classes; while another run has it; with a damaged checkpoint."""
    recipe, work_dir = write_recipe(tmp_path, BRIEF), tmp_path / "work"
    train(settings_of(recipe, photos, work_dir))
    kept = {path.name: path.read_bytes() for path in work_dir.iterdir() if path.name != ".lock"}

    def refuse(reason: str, **options: Any) -> None:
        data, chosen = options.pop("data", photos), options.pop("recipe", recipe)
        with pytest.raises(ValueError, match=reason):
            train(settings_of(chosen, data, work_dir, **options))
        assert kept == {path.name: path.read_bytes() for path in work_dir.iterdir() if path.name != ".lock"}

    refuse("holds a run: go on with it")
    refuse("began with seed 0, now it is 1", resume=True, seed=1)
    (tmp_path / "other").mkdir()
    other = write_recipe(tmp_path / "other", BRIEF.replace("0.002", "0.003"))
    refuse("began with lr 0.002, now it is 0.003", resume=True, recipe=other)
    more = write_photos(tmp_path / "more", train=4, val=2, classes=3)
    refuse(r"has 2 classes \(astronaut, chelsea, ...\), the data now has 3 classes", resume=True, data=more)
    for split, what in (("train", "training images 8"), ("val", "validation images 4")):
        moved = Path(shutil.copytree(photos, tmp_path / split))  # as many of the same classes
        (moved / split / PHOTOS[0] / "0.jpg").rename(moved / split / PHOTOS[1] / "0 again.jpg")
        refuse(rf"began with {what} \(digest \w+\), now it is \d \(digest", resume=True, data=moved)
    train(settings_of(recipe, moved, work_dir, resume=True, validate=False))  # which val is the same to
    with FileLock(work_dir / ".lock"):
        refuse("is in use by another run", resume=True)
    (work_dir / "last.pth").write_bytes(kept["last.pth"][:1000])
    kept["last.pth"] = kept["last.pth"][:1000]
    refuse("is no checkpoint, or is damaged", resume=True)
    write_checkpoint(work_dir / "last.pth", {"state_dict": {}})
    kept["last.pth"] = (work_dir / "last.pth").read_bytes()
    refuse("is no checkpoint of a training run", resume=True)


def test_a_loss_that_is_no_number_stops_the_run(photos: Path, tmp_path: Path) -> None:
    """And the checkpoint from before stays, which still is fine."""
    recipe = write_recipe(
        tmp_path,
        BRIEF.replace('"rmsprop"', '"sgd"')
        .replace("0.002", "1e30")
        .replace("alpha = 0.9", "")
        .replace("eps = 0.0316", ""),
    )
    settings = settings_of(recipe, photos, tmp_path / "work", checkpoint_interval=1)
    with pytest.raises(
        Diverged, match=r"in epoch 1, iteration [12], learning rate 1e\+30; the checkpoint from before, if"
    ):
        train(settings)
    result = call(recipe, "--data", photos, "--work-dir", tmp_path / "other", "--workers", 0, "--device", "cpu")
    refused(result, "in epoch 1, iteration", status=1)
    assert not (tmp_path / "other" / "last.pth").exists()


def test_weights_that_are_no_numbers_are_not_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last iteration before a checkpoint spoils them; no loss has shown it yet."""
    settings = settings_of(write_recipe(tmp_path, BRIEF), photos, tmp_path / "work", checkpoint_interval=1)
    step = Trainer._step

    def spoil(self: Trainer, *args: Any, **options: Any) -> bool:
        stopping = step(self, *args, **options)
        if self.state.progress.iteration == 1:
            with torch.no_grad():
                self.state.network.features[3].block[0][0].weight[0] = float("inf")
        return stopping

    monkeypatch.setattr(Trainer, "_step", spoil)
    with pytest.raises(Diverged, match="^train: a weight is not finite in epoch 1, iteration 2, learning rate 0.002;"):
        train(settings)
    assert not list(settings.work_dir.glob("best*"))
    kept = read_checkpoint(settings.work_dir / "last.pth")
    assert kept["progress"]["iteration"] == 1
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    write_checkpoint(path, {"a": torch.zeros(10)})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(OSError, match=f"{path} cannot be written: File too large"):
            write_checkpoint(path, {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pth"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("names", [["best_epoch_7.pth"], ["best_epoch_1.pth", "averaged.pth"]])
def test_weights_without_their_run_are_left_alone(names: list[str], tmp_path: Path) -> None:
    """Somebody kept the best ones alone; to begin there would remove them, also with --resume."""
    for name in names:
        (tmp_path / name).write_bytes(b"weights")
    with WorkDir(tmp_path) as work_dir:
        with pytest.raises(ValueError, match="holds a run: go on with it"):
            work_dir.begin(resume=False)
        with pytest.raises(ValueError, match=r"has a run's weights, but no last\.pth; choose another folder"):
            work_dir.begin(resume=True)


def test_what_a_kill_leaves_goes_away(tmp_path: Path) -> None:
    """The half of a file, and weights of the first epoch before its checkpoint; but no file of another name."""
    names = [".mnv3-fast-x7", "best_epoch_1.pth", "best_epoch_1 of May.pth", "best_epoch_old.pth"]
    for name in names:
        (tmp_path / name).write_bytes(b"weights")
    with WorkDir(tmp_path) as work_dir:
        assert work_dir.begin(resume=True) is None
        work_dir.keep_best([])
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == set(names[2:])


def test_a_folder_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = call(write_recipe(tmp_path, BRIEF), "--data", photos, "--work-dir", tmp_path / "file" / "work")
    refused(result, f"{tmp_path / 'file' / 'work'} cannot be written: Not a directory", status=3)


def test_train_and_test_on_the_command_line(photos: Path, tmp_path: Path) -> None:
    """What ``train`` says of its best checkpoint is what ``test`` finds."""
    work_dir = tmp_path / "work"
    result = call(write_recipe(tmp_path, BRIEF), "--data", photos, "--work-dir", work_dir, "--workers", 0, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["epochs"], facts["best_epoch"], facts["averaged_top1"]) == (1, 1, None)
    assert facts["best_top1"] == next(record["accuracy/top1"] for record in log_of(work_dir) if "loss" not in record)
    assert "epoch 1: top-1" in result.stderr
    tested = CliRunner().invoke(
        app,
        [
            "test",
            CIFAR,
            facts["best_checkpoint"],
            "--data",
            str(photos),
            "--workers",
            "0",
            "--json",
            "--state",
            str(tmp_path / "state.json"),
        ],
    )
    assert tested.exit_code == 0, tested.output
    assert json.loads(tested.stdout)["top1"] == facts["best_top1"]
