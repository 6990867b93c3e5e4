"""A run that was killed goes on to the same bits: weights, moving average, optimizer, log."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mnv3_fast.checkpoints import read_checkpoint
from mnv3_fast.training import train
from mnv3_fast.training.stopping import StopRequest
from tests.training.photos import write_photos
from tests.training.runs import assert_same_files, log_of, settings_of, started, wait_for, write_recipe

ITERATIONS = 7  # an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), train=10, val=4, classes=3)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    train(settings_of(write_recipe(folder), data, folder / "work", checkpoint_interval=2))
    return folder / "work"


def go_on(work_dir: Path, data: Path, recipe: Path, **options: int) -> None:
    train(settings_of(recipe, data, work_dir, resume=True, checkpoint_interval=2, **options))


def kill_and_go_on(data: Path, folder: Path, step: int, workers: int) -> Path:
    """Kill a run after an iteration, see that a checkpoint is from before, and go on."""
    recipe, work_dir = write_recipe(folder), folder / "work"
    with started(recipe, data, work_dir, "--checkpoint-interval", "2") as process:
        wait_for(process, work_dir, step)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    progress = read_checkpoint(work_dir / "last.pth")["progress"]
    assert 0 < progress["epoch"] * ITERATIONS + progress["iteration"] < 2 * ITERATIONS
    torch.manual_seed(1234)
    go_on(work_dir, data, recipe, workers=workers)
    return work_dir


def test_a_killed_run_goes_on_to_the_same_bits(data: Path, whole: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    assert_same_files(whole, kill_and_go_on(data, tmp_path, ITERATIONS + 4, workers=0))


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, ITERATIONS + 1, 2 * ITERATIONS - 1])
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_anywhere(data: Path, whole: Path, tmp_path: Path, step: int, workers: int) -> None:
    torch.set_num_threads(1)
    assert_same_files(whole, kill_and_go_on(data, tmp_path, step, workers))


@pytest.mark.slow
def test_what_the_log_has_beyond_the_checkpoint_is_cut_off(data: Path, whole: Path, tmp_path: Path) -> None:
    """Lines and best checkpoints from after the checkpoint, as a kill leaves them."""
    torch.set_num_threads(1)
    recipe, work_dir = write_recipe(tmp_path), tmp_path / "work"
    half = settings_of(recipe, data, work_dir, checkpoint_interval=2)
    with pytest.raises(Stopped):
        train(half, report=stop_after)
    (work_dir / "best_epoch_9.pth").write_bytes(b"of an epoch that is not done")
    with (work_dir / "scalars.json").open("a") as log:
        log.write('{"loss": 1, "iter": 99')
    go_on(work_dir, data, recipe)
    assert_same_files(whole, work_dir)


class Stopped(Exception):
    pass


def stop_after(record: dict) -> None:
    if record.get("iter") == ITERATIONS + 3:
        raise Stopped


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_has_its_last_iteration(
    data: Path, whole: Path, tmp_path: Path, number: int, workers: int
) -> None:
    torch.set_num_threads(1)
    recipe, work_dir = write_recipe(tmp_path), tmp_path / "work"
    with started(recipe, data, work_dir, "--workers", str(workers)) as process:  # no checkpoints within an epoch
        wait_for(process, work_dir, ITERATIONS + 2)
        os.killpg(process.pid, number)  # as a terminal, torchrun and schedulers do: the workers get it, too
        assert process.wait() == 130
    progress = read_checkpoint(work_dir / "last.pth")["progress"]
    lines = [record for record in log_of(work_dir) if "iter" in record]
    assert progress["epoch"] == 1
    assert progress["epoch"] * ITERATIONS + progress["iteration"] == lines[-1]["iter"] >= ITERATIONS + 2
    go_on(work_dir, data, recipe)
    assert_same_files(whole, work_dir)


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_with_the_reason(data: Path, tmp_path: Path) -> None:
    """Wherever the run is then: torch raises it in the middle of the loop."""
    recipe, work_dir = write_recipe(tmp_path), tmp_path / "work"
    with started(recipe, data, work_dir, "--workers", "1") as process:
        wait_for(process, work_dir, 2)
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 2
    assert "mnv3-fast: a process that decodes images died, perhaps for want of memory" in said
    assert "Traceback" not in said


def test_a_run_that_is_done_stays_as_it_is(data: Path, whole: Path, tmp_path: Path) -> None:
    before = (whole / "last.pth").read_bytes(), (whole / "scalars.json").read_bytes()
    go_on(whole, data, write_recipe(tmp_path))
    assert before == ((whole / "last.pth").read_bytes(), (whole / "scalars.json").read_bytes())


def test_the_log_has_mmpretrains_keys(whole: Path) -> None:
    log = log_of(whole)
    assert [list(record) for record in log[:ITERATIONS]] == [
        ["lr", "data_time", "loss", "time", "epoch", "iter", "step"]
    ] * ITERATIONS
    assert list(log[ITERATIONS]) == ["accuracy/top1", "accuracy/top5", "step"]
    assert [record["step"] for record in log] == [*range(1, 8), 1, *range(8, 15), 2]
    assert [record["epoch"] for record in log if "epoch" in record] == [1] * ITERATIONS + [2] * ITERATIONS


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a program's foreground; a shell's background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest(insistent=True) as stop:
        assert not stop
        signal.raise_signal(signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with StopRequest(insistent=False) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # as torchrun does
        assert stop
    assert signal.getsignal(signal.SIGINT) is before
