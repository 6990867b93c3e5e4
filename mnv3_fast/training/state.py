"""All that a run changes while it trains, and how it goes to a checkpoint and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torchvision.models.mobilenetv3 import MobileNetV3

from mnv3_fast.training.averaging import moving_average
from mnv3_fast.training.batch_norm import synchronize_batch_norms
from mnv3_fast.training.networks import starting_network, training_mode
from mnv3_fast.training.optimizers import build_optimizer, build_schedule
from mnv3_fast.training.seeds import seed_generators, seed_of
from mnv3_fast.training.settings import Settings
from mnv3_fast.training.validation import VALIDATION


@dataclass
class Progress:
    """Where a run is: what it takes to go on besides tensors.

    Attributes:
        epoch: how many are done.
        iteration: how many of the epoch that runs are done.
        loss_sum, loss_count: of the iterations since the last line of the log.
        best: the highest top-1 so far.
        best_epochs: the last ones that raised it, whose checkpoints are kept.
        log_size: bytes of the log.
    """

    epoch: int = 0
    iteration: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    best: float = -1.0
    best_epochs: list[int] = field(default_factory=list)
    log_size: int = 0


@dataclass
class State:
    """Network, optimizer, learning rate, loss scale, moving average, and where the run is."""

    network: MobileNetV3
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    progress: Progress

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self.optimizer.param_groups[0]["lr"]

    def is_finite(self) -> bool:
        """Whether every weight and statistic is a finite number."""
        return all(bool(value.isfinite().all()) for value in self.network.state_dict().values())

    def trained(self) -> dict[str, Tensor]:
        """What the training would give if it ended here: the moving average where there is one."""
        return (self.network if self.average is None else self.average.module).state_dict()

    def contents(self) -> dict[str, Any]:
        """Tensors, numbers, text and plain containers, for a checkpoint."""
        found = {
            "state_dict": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }
        if self.average is not None:
            found |= {"ema_state_dict": self.trained(), "ema_updates": int(self.average.n_averaged)}
        return found

    def load(self, contents: dict[str, Any]) -> None:
        """Be what :meth:`contents` was taken from."""
        self.network.load_state_dict(contents["state_dict"])
        self.optimizer.load_state_dict(contents["optimizer"])
        self.schedule.load_state_dict(contents["schedule"])
        self.scaler.load_state_dict(contents["scaler"])
        self.progress = Progress(**contents["progress"])
        if self.average is not None:
            self.average.module.load_state_dict(contents["ema_state_dict"])
            self.average.n_averaged.fill_(contents["ema_updates"])


def build_state(settings: Settings, num_classes: int, world: int, device: torch.device) -> State:
    """The state at the start of a run on ``world`` processes.

    Raises:
        FileNotFoundError, ValueError: if the weights to start from cannot be read or do not fit, or the optimizer is
            not there.
    """
    recipe, total = settings.recipe, settings.recipe.batch * world
    seed_generators(seed_of(settings.seed))
    network = starting_network(settings.variant, num_classes, recipe.dropout, settings.checkpoint).to(device)
    training_mode(network, settings.freeze_backbone)
    if recipe.sync_batch_norm and world > 1:
        synchronize_batch_norms(network, device)
    scale = total / recipe.base_batch if settings.auto_scale_lr else 1.0
    optimizer = build_optimizer(network, recipe.optimizer, scale)
    how = recipe.moving_average
    return State(
        network,
        optimizer,
        build_schedule(optimizer, recipe.schedule, recipe.epochs),
        torch.amp.GradScaler(device.type, enabled=settings.amp is torch.float16),
        None if how is None else moving_average(network, how, total, recipe.epochs),
        Progress(),
    )


def check_resumable(saved: dict[str, Any], meta: dict[str, Any], where: Path) -> None:
    """Refuse to go on from what another run, or none, has written.

    Raises:
        ValueError: naming the first thing that differs, as it was and as it is.
    """
    if not isinstance(saved.get("progress"), dict) or "identity" not in saved.get("meta", {}):
        raise ValueError(f"train: {where} is no checkpoint of a training run")
    classes = saved["meta"]["CLASSES"], meta["CLASSES"]
    if classes[0] != classes[1]:
        some, others = (f"{len(names)} classes ({', '.join(names[:3])}, ...)" for names in classes)
        raise ValueError(f"train: the run of {where} has {some}, the data now has {others}")
    now, then = meta["identity"], saved["meta"]["identity"]
    _check_identity({name: now[name] for name in now if name in then or name != VALIDATION}, then, where)


def _check_identity(now: dict[str, Any], then: dict[str, Any], where: Path) -> None:
    for name, value in now.items():
        before = then.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            _check_identity(value, before, where)
        elif value != before:
            raise ValueError(f"train: the run of {where} began with {name} {before}, now it is {value}")
