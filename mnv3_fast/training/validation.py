"""The sets of images of a run, and the accuracy of weights on the one for validation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mnv3_fast.data.evaluation import Accuracy, evaluate
from mnv3_fast.data.folders import Split, read_split
from mnv3_fast.data.processes import Processes
from mnv3_fast.data.state import digest_of_split
from mnv3_fast.training.networks import validation_engine
from mnv3_fast.training.settings import Settings

logger = logging.getLogger("mnv3_fast")

VALIDATION = "validation images"
"""The key of a run's identity that it may lack: a run may go on with or without validation."""


@dataclass(frozen=True)
class Sets:
    """The images to train with and to validate with, and the names of their classes."""

    train: Split
    validation: Split | None
    classes: tuple[str, ...]

    @cached_property
    def identity(self) -> dict[str, str]:
        """How many images there are to train and to validate with, and what tells them from others."""
        splits = {"training images": self.train, VALIDATION: self.validation}
        return {
            name: f"{len(split.samples)} (digest {digest_of_split(split)})"
            for name, split in splits.items()
            if split is not None
        }


def read_sets(settings: Settings) -> Sets:
    """Read the folders of a run.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_split`; and for less than two classes, or others in ``val``.
    """
    train = read_split(settings.data, "train")
    count = train.num_classes
    if count < 2:
        raise ValueError(f"train: {train.folder} has {count} class, at least 2 are wanted")
    known = settings.variant.classes()
    classes = train.classes or (known if len(known) == count else tuple(str(label) for label in range(count)))
    if not settings.validate:
        return Sets(train, None, classes)
    try:
        validation = read_split(settings.data, "val", count)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --no-validate trains without") from error
    if train.classes and validation.classes and train.classes != validation.classes:
        odd = sorted(set(train.classes) ^ set(validation.classes))
        raise ValueError(f"train: train and val have other classes: {', '.join(odd[:3])} only in one of them")
    return Sets(train, validation, classes)


def accuracy_of(
    weights: Mapping[str, Tensor], settings: Settings, sets: Sets, processes: Processes, device: torch.device
) -> Accuracy:
    """How often a network with these weights is right on the images for validation, over all processes."""
    assert sets.validation is not None
    found = evaluate(
        validation_engine(settings.variant, len(sets.classes), weights, device),
        sets.validation,
        settings.variant.preprocessing,
        batch=settings.recipe.batch,
        workers=settings.workers,
        processes=processes,
        device=device,
    )
    for path, why in found.unreadable if processes.is_first else ():
        logger.warning("train: counted as wrong, since it cannot be read: %s: %s", path, why)
    return found
