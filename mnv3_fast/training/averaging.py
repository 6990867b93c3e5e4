"""Means of weights: an exponential one over the iterations, and that of several checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mnv3_fast.checkpoints import read_checkpoint
from mnv3_fast.training.recipe import MovingAverage


def moving_average(model: nn.Module, how: MovingAverage, batch: int, epochs: int) -> AveragedModel:
    """The exponential moving average of a model's parameters and buffers, BatchNorm's statistics among them.

    Args:
        model: what is averaged; it is copied.
        how: the recipe's ``[moving_average]``.
        batch: images an iteration on all processes.
        epochs: of the whole training.
    """
    decay = how.decay
    if how.adjust:  # torchvision's references/classification/train.py
        decay = 1.0 - min(1.0, (1.0 - how.decay) * batch * how.steps / epochs)
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def mean_of_checkpoints(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Tensor]:
    """The mean of the state_dicts of checkpoints, summed in float64; of integers (norms' counters) the last one's.

    Raises:
        FileNotFoundError, ValueError: if one cannot be read.
    """
    states = [read_checkpoint(path)["state_dict"] for path in paths]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(last.dtype)
        if last.is_floating_point()
        else last
        for name, last in states[-1].items()
    }
