"""Means of weights against their formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mnv3_fast.training.averaging import mean_of_checkpoints, moving_average
from mnv3_fast.training.recipe import MovingAverage


def averaged_with(how: MovingAverage, batch: int, epochs: int) -> float:
    """The decay that a moving average has: what is left of 1 after an update with 0."""
    model = nn.Sequential(nn.BatchNorm2d(1))
    average = moving_average(model, how, batch, epochs)
    with torch.no_grad():
        average.update_parameters(model)
        for value in (model[0].weight, model[0].running_mean):
            value.zero_()
        average.module[0].running_mean.fill_(1)
        average.update_parameters(model)
    left = average.module[0].weight.item()
    assert average.module[0].running_mean.item() == left  # statistics as the weights
    return left


def test_the_decay_is_the_recipes() -> None:
    assert averaged_with(MovingAverage(0.75), 1024, 600) == 0.75


def test_the_decay_is_adjusted_as_in_torchvisions_script() -> None:
    """8 GPUs x 128 images x 32 steps / 600 epochs times 1 - 0.99998: (1 - d) x 54.613."""
    left = averaged_with(MovingAverage(0.99998, steps=32, adjust=True), 1024, 600)
    assert left == pytest.approx(1 - 2e-5 * 1024 * 32 / 600, abs=1e-6)
    assert averaged_with(MovingAverage(0.5, adjust=True), 1024, 100) == 0.0


def test_the_mean_of_checkpoints(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.pth" for number in range(3)]
    for number, path in enumerate(paths):
        large = 2.0**24 if number == 0 else 1.0  # in float32 the ones would be lost
        state = {"w": torch.tensor([large, number]), "num_batches_tracked": torch.tensor(number)}
        torch.save({"state_dict": state}, path)
    found = mean_of_checkpoints(paths)
    assert torch.equal(found["w"], torch.tensor([(2**24 + 2) / 3, 1.0]))
    assert found["num_batches_tracked"].item() == 2
