"""Small runs: what the tests of the loop train, in this process or in one that can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnv3_fast import testing
from mnv3_fast.checkpoints import read_checkpoint
from mnv3_fast.data.folders import read_split
from mnv3_fast.models.preprocessing import image_of, scale_and_shift
from mnv3_fast.models.variants import build, find_variant
from mnv3_fast.training import Settings, read_recipe

CIFAR = "mobilenet-v3-small_8xb16_cifar10"  # 32 x 32 pixels
RECIPE = f"""
model = "{CIFAR}"
epochs = 2
batch = 4
base_batch = 4
dropout = 0.2
label_smoothing = 0.1
average = 2

[optimizer]
name = "rmsprop"
lr = 0.002
momentum = 0.9
alpha = 0.9
eps = 0.0316

[schedule]
name = "cosine"
warmup_epochs = 1

[augmentation]
auto_augment = "imagenet"
erase = 0.5
mixup = 0.2
cutmix = 1.0

[moving_average]
decay = 0.9
"""
TIMES = ("time", "data_time")


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    """A recipe file."""
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def write_parity(folder: Path, photos: Path | None = None) -> str:
    """A checkpoint of the parity model: of fresh weights logits hardly depend on the image, and no fault shows.

    With ``photos``, a folder of :func:`write_photos`, its statistics are those of these, as after a training; else they
    are of random images, and its features of photos are far from them.
    """
    variant = find_variant(CIFAR)
    network = testing.randomize_(build(variant), 0, variant.preprocessing.crop)
    if photos is not None:
        scale, shift = (value.view(3, 1, 1) for value in scale_and_shift(variant.preprocessing))
        samples = read_split(photos, "train").samples
        images = torch.stack([image_of(path, variant.preprocessing) * scale + shift for path, _ in samples])
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 1.0
        with torch.no_grad():
            network.train()(images)
    path = folder / "parity.pth"
    torch.save(network.state_dict(), path)
    return str(path)


def settings_of(recipe: Path, data: Path, work_dir: Path, **options: Any) -> Settings:
    """A run on the CPU that reads in its own process and logs every iteration."""
    return Settings(
        **{
            "variant": find_variant(CIFAR),
            "recipe": read_recipe(recipe),
            "data": data,
            "work_dir": work_dir,
            "workers": 0,
            "log_interval": 1,
        }
        | options
    )


def started(recipe: Path, data: Path, work_dir: Path, *options: str, **environment: str) -> subprocess.Popen:
    """The same as a program, in a session of its own."""
    command = [sys.executable, "-m", "mnv3_fast.cli", "train", str(recipe), "--data", str(data)]
    command += ["--work-dir", str(work_dir), "--workers", "0", "--log-interval", "1", *options]
    return subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's "&" has it ignored
        start_new_session=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen, work_dir: Path, step: int) -> None:
    """Until the log has an iteration, and so the checkpoint of one before."""
    while not any(record.get("iter", 0) >= step for record in log_of(work_dir)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def log_of(work_dir: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; an empty list where there is none yet."""
    path = work_dir / "scalars.json"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def without_times(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of a log is the same in every run."""
    return [{name: value for name, value in record.items() if name not in TIMES} for record in log]


def assert_same_files(one: Path, other: Path) -> None:
    """Two work-dirs hold the same checkpoints, to the bit, and the same log but for the times."""
    names = sorted(path.name for path in one.glob("*.pth"))
    assert names == sorted(path.name for path in other.glob("*.pth"))
    assert "last.pth" in names
    for name in names:
        assert_same(read_checkpoint(one / name), read_checkpoint(other / name), name)
    assert without_times(log_of(one)) == without_times(log_of(other))


def assert_same(a: Any, b: Any, path: str) -> None:
    """Two trees of containers with the same tensors, bit by bit; but for the size of the log, which has times."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, path
        assert torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            if key != "log_size":
                assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}.{index}")
    else:
        assert a == b, path
