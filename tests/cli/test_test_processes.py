"""``test`` as processes of its own: killed and gone on with, interrupted by Ctrl-C, and two at a time under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.cli.test_processes import ENVIRONMENT
from tests.cli.test_test_verb import CIFAR, counts, write_checkpoint
from tests.data.images import write_crops
from tests.data.test_evaluation import logits_of_torchvision, network
from tests.data.test_processes import free_port, torchrun_environment

COPIES = 40
PATIENCE = 240
"""Seconds to wait for the first image, on a busy machine too."""
VERB = ["-m", "mnv3_fast.cli", "test", CIFAR.name, "small.pth", "--data", "set", "--json"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Six classes of three images."""
    write_crops(tmp_path / "set" / "val", dict.fromkeys("abcdef", 3), seed=3)
    write_checkpoint(tmp_path / "small.pth", network(), tuple("abcdef"))
    return tmp_path


def expected(here: Path) -> tuple[int, int]:
    return counts(*logits_of_torchvision(network(), here / "set" / "val", CIFAR.preprocessing))


def start(here: Path, *options: str, torchrun: int = 0, **more: str) -> subprocess.Popen[str]:
    place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    before = ["-m", "torch.distributed.run", "--nproc-per-node", str(torchrun), *place] if torchrun else []
    return subprocess.Popen(
        [sys.executable, *before, *VERB, *options], cwd=here, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's "&" has it ignored
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONFAULTHANDLER": "1"} | more,
    )  # fmt: skip


def wait_for_images(here: Path, process: subprocess.Popen[str]) -> int:
    """Until the state file tells of some images; how many."""
    state = here / "mnv3-fast-test" / f"{CIFAR.name}.json"
    end = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        if time.monotonic() > end:
            os.killpg(process.pid, signal.SIGABRT)  # Python then says where it waits
            pytest.fail(f"no image after {PATIENCE} s: {process.communicate(timeout=60)[1]}")
        if state.exists() and (done := json.loads(state.read_text())["known"]["images"]):
            return done
        time.sleep(0.05)


def multiply(here: Path) -> None:
    """Each image under many names, so that there is time."""
    for file in list((here / "set" / "val").rglob("*.JPEG")):
        for copy in range(1, COPIES):
            os.link(file, file.with_name(f"{file.stem}-{copy}.JPEG"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_was_killed_is_gone_on_with(number: int, here: Path) -> None:
    top1, top5 = expected(here)
    multiply(here)
    options = ["--batch", "1", "--workers", "2", "--output", "lines.jsonl"]
    process = start(here, *options)
    done = wait_for_images(here, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: the workers get it, too
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    if number == signal.SIGINT:
        assert "Traceback" not in said and f"of {18 * COPIES} images are done" in said
    again = start(here, *options)
    text, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert f"of {18 * COPIES} images are done" in said
    found = json.loads(text)
    assert done <= found["resumed_from"] < found["images"] == 18 * COPIES
    assert (found["correct_top1"], found["correct_top5"]) == (COPIES * top1, COPIES * top5)
    paths = [json.loads(line)["path"] for line in (here / "lines.jsonl").read_text().splitlines()]
    assert len(set(paths)) == len(paths) == 18 * COPIES


@pytest.mark.slow
def test_torchrun_counts_what_one_process_counts(here: Path) -> None:
    bad = here / "set" / "val" / "f" / "002.JPEG"
    bad.write_bytes(b"")
    alone, said = start(here, "--workers", "0").communicate(timeout=300)
    assert "1 of 18 images could not be read" in said
    process = start(here, "--workers", "1", "--batch", "2", "--output", "lines.jsonl", torchrun=2)
    text, said = process.communicate(timeout=300)
    assert process.returncode == 1  # for the image that cannot be read
    found, wanted = json.loads(text), json.loads(alone)
    assert found["processes"] == 2
    for name in ("images", "correct_top1", "correct_top5", "unreadable", "top1", "top5", "model"):
        assert found[name] == wanted[name], name
    assert said.count("set/val/f/002.JPEG: no image that PIL can read") == 1
    lines = [json.loads(line) for line in (here / "lines.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [label for label in range(6) for _ in range(3)]


@pytest.mark.slow
def test_what_two_processes_began_one_goes_on_with(here: Path) -> None:
    top1, top5 = expected(here)
    multiply(here)
    port = free_port()
    first, second = (
        start(here, "--batch", "1", "--workers", "1", **torchrun_environment(rank, 2, port)) for rank in (0, 1)
    )
    done = wait_for_images(here, first)
    second.kill()
    second.communicate(timeout=300)
    text, said = first.communicate(timeout=300)
    assert (first.returncode, text) == (2, ""), said
    assert "mnv3-fast: another of the processes has ended or cannot be reached" in said
    found = json.loads(start(here, "--workers", "0").communicate(timeout=300)[0])
    assert done <= found["resumed_from"] < found["images"] == 18 * COPIES
    assert (found["correct_top1"], found["correct_top5"]) == (COPIES * top1, COPIES * top5)


@pytest.mark.slow
def test_torchrun_says_once_what_is_wrong(here: Path) -> None:
    torch.save({"features.0.0.weight": torch.zeros(1)}, here / "small.pth")
    process = start(here, torchrun=2)
    text, said = process.communicate(timeout=300)
    assert process.returncode == 1  # torchrun's, whatever its processes end with
    assert text == ""
    assert said.count("mnv3-fast: checkpoint: ") == 1
