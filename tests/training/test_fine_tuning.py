"""Training on photos: the loss falls, and what was learned holds on crops that were not trained with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.checkpoints import classes_of, load_into, read_checkpoint
from mnv3_fast.data.evaluation import evaluate
from mnv3_fast.data.folders import read_split
from mnv3_fast.models.preprocessing import scale_and_shift
from mnv3_fast.models.variants import build, find_variant
from mnv3_fast.training import train
from mnv3_fast.training.networks import starting_network, training_mode
from tests.models.common import count_ops
from tests.training.photos import PHOTOS, write_photos
from tests.training.runs import CIFAR, log_of, settings_of, write_parity, write_recipe

HEAD = """
epochs = 6
batch = 24
base_batch = 24

[optimizer]
name = "adamw"
lr = 0.0005

[schedule]
name = "cosine"

[augmentation]
area = [0.5, 1.0]
"""
VALIDATED = 16  # images a class


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), train=24, val=VALIDATED)


def beyond_chance(images: int, classes: int = len(PHOTOS)) -> float:
    """Percent that guessing reaches once in three million times: five standard errors above 1 / classes."""
    chance = 1 / classes
    return 100 * (chance + 5 * math.sqrt(chance * (1 - chance) / images))


def mean_loss(log: list[dict[str, Any]], epoch: int) -> float:
    losses = [record["loss"] for record in log if record.get("epoch") == epoch]
    return sum(losses) / len(losses)


def accuracy_with_load_into(checkpoint: Path, data: Path) -> float:
    """Of a checkpoint read as any other one, by an engine; its classes are the folders'."""
    variant = find_variant(CIFAR)
    network = build(variant, num_classes=len(PHOTOS))
    contents = load_into(network, checkpoint)
    assert classes_of(contents, len(PHOTOS)) == tuple(sorted(PHOTOS))
    scale, shift = scale_and_shift(variant.preprocessing)
    engine = mnv3_fast.freeze(network.eval(), scale=scale, shift=shift)
    return evaluate(engine, read_split(data, "val"), variant.preprocessing, workers=0).top1


def test_a_frozen_backbone(data: Path, tmp_path: Path) -> None:
    """The classifier of ten classes is replaced, and alone changes; the accuracy is far from chance."""
    checkpoint = write_parity(tmp_path, data)
    settings = settings_of(
        write_recipe(tmp_path, HEAD), data, tmp_path / "work", checkpoint=checkpoint, freeze_backbone=True
    )
    trained = train(settings)
    log, before = log_of(settings.work_dir), read_checkpoint(checkpoint)
    after = read_checkpoint(settings.work_dir / "last.pth")["state_dict"]
    assert mean_loss(log, 6) < 0.9 * mean_loss(log, 1)
    assert trained.best is not None
    assert trained.best > beyond_chance(VALIDATED * len(PHOTOS))
    assert trained.best == max(record["accuracy/top1"] for record in log if "accuracy/top1" in record)
    assert accuracy_with_load_into(settings.work_dir / f"best_epoch_{trained.best_epoch}.pth", data) == trained.best
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("features."), name
    assert after["classifier.3.weight"].shape == (len(PHOTOS), 1280)


def test_a_frozen_backbone_runs_on_the_kernels(tmp_path: Path) -> None:
    network = starting_network(find_variant(CIFAR), 6, None, write_parity(tmp_path))
    images = testing.parity_images(2, 32)
    training_mode(network, freeze_backbone=True)
    logits = []
    ran = count_ops(lambda: logits.append(network(images)))
    assert ran["mnv3_fast::run_plan"] == len(network.features)  # stem, blocks and last convolution
    assert not any("conv" in name for name in ran)
    assert logits[0].requires_grad
    training_mode(network, freeze_backbone=False)
    network.requires_grad_(True)
    ran = count_ops(lambda: network(images))
    assert "mnv3_fast::run_plan" not in ran
    assert ran["aten::conv2d"] == 52


def test_a_checkpoint_of_as_many_classes_keeps_its_classifier(tmp_path: Path) -> None:
    checkpoint = write_parity(tmp_path)
    state = read_checkpoint(checkpoint)
    kept = starting_network(find_variant(CIFAR), 10, None, checkpoint)
    assert all(torch.equal(value, state[name]) for name, value in kept.state_dict().items())
    assert kept.training
    replaced = starting_network(find_variant(CIFAR), 3, None, checkpoint).state_dict()
    other = [name for name, value in replaced.items() if value.shape != state[name].shape]
    assert other == ["classifier.3.weight", "classifier.3.bias"]
    assert all(torch.equal(value, state[name]) for name, value in replaced.items() if name not in other)


ALL = """
epochs = 10
batch = 12
base_batch = 12
label_smoothing = 0.1
average = 3

[optimizer]
name = "sgd"
lr = 0.005
momentum = 0.9

[schedule]
name = "cosine"

[augmentation]
area = [0.5, 1.0]
mixup = 0.1

[moving_average]
decay = 0.9
"""


@pytest.mark.slow
def test_all_of_a_network(data: Path, tmp_path: Path) -> None:
    """With mixing, label smoothing, a moving average, and the average of the best checkpoints."""
    checkpoint = write_parity(tmp_path, data)
    settings = settings_of(write_recipe(tmp_path, ALL), data, tmp_path / "work", checkpoint=checkpoint)
    trained = train(settings)
    log = log_of(settings.work_dir)
    assert mean_loss(log, 10) < 0.9 * mean_loss(log, 1)
    assert trained.averaged is not None
    for name, accuracy in ((f"best_epoch_{trained.best_epoch}", trained.best), ("averaged", trained.averaged.top1)):
        assert accuracy is not None
        assert accuracy > beyond_chance(VALIDATED * len(PHOTOS)), name
        assert accuracy_with_load_into(settings.work_dir / f"{name}.pth", data) == accuracy


@pytest.mark.slow
def test_mixed_precision_on_the_cpu(data: Path, tmp_path: Path) -> None:
    settings = settings_of(
        write_recipe(tmp_path, HEAD),
        data,
        tmp_path / "work",
        checkpoint=write_parity(tmp_path, data),
        amp=torch.bfloat16,
    )
    train(settings)
    log = log_of(settings.work_dir)
    assert mean_loss(log, 6) < 0.9 * mean_loss(log, 1)
    state = read_checkpoint(settings.work_dir / "last.pth")["state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
