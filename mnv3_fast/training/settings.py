"""What one run trains, on what, where and how."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mnv3_fast.models.variants import Variant
from mnv3_fast.training.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """Of one run.

    Attributes:
        variant: the network.
        recipe: how it is trained.
        data: the folder with ``train`` and ``val``.
        work_dir: where checkpoints and the log go.
        resume: go on from ``work_dir``'s last checkpoint, if there is one.
        checkpoint: weights to start from, a path or URL; None for random ones.
        freeze_backbone: train the classifier alone.
        auto_scale_lr: multiply the learning rate by the batch of all processes over the recipe's ``base_batch``.
        amp: autocast's dtype in training; None computes in float32.
        workers: processes that read images, for each process that trains.
        device: "cpu" or "cuda".
        seed: of everything that is drawn.
        validate: after each epoch, on ``val``.
        log_interval: iterations between two lines of the log.
        checkpoint_interval: iterations between two checkpoints within an epoch; 0 for those at its end alone.
    """

    variant: Variant
    recipe: Recipe
    data: Path
    work_dir: Path
    resume: bool = False
    checkpoint: str | None = None
    freeze_backbone: bool = False
    auto_scale_lr: bool = False
    amp: torch.dtype | None = None
    workers: int = 2
    device: str = "cpu"
    seed: int = 0
    validate: bool = True
    log_interval: int = 100
    checkpoint_interval: int = 0

    def __post_init__(self) -> None:
        if self.recipe.average and not self.validate:
            raise ValueError("train: an average of the best checkpoints needs validation, or average 0")

    def identity(self, world: int) -> dict[str, Any]:
        """What must be the same for a run to go on, whatever the number of processes that share its batch."""
        recipe = dataclasses.asdict(self.recipe)
        return {
            "variant": self.variant.name,
            "recipe": recipe | {"batch": recipe["batch"] * world},
            "seed": self.seed,
            "amp": str(self.amp),
            "freeze_backbone": self.freeze_backbone,
            "auto_scale_lr": self.auto_scale_lr,
        }
