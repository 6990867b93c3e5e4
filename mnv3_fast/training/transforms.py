"""Augmentation: from a decoded photo to a normalised training image, and the mixing of a batch. torchvision's, v2."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from mnv3_fast.models.variants import Preprocessing
from mnv3_fast.training.recipe import Augmentation


def training_transform(how: Augmentation, preprocessing: Preprocessing) -> v2.Compose:
    """What makes a training image [3, size, size], float32, (x - mean) / std, of a PIL image in RGB.

    Size, interpolation, mean and standard deviation are the variant's, unless the recipe has a size.
    """
    size = how.size or preprocessing.crop
    interpolation = InterpolationMode(preprocessing.interpolation)
    if how.crop == "resized":
        steps = [v2.RandomResizedCrop(size, scale=how.area, interpolation=interpolation)]
    else:
        steps = [v2.RandomCrop(size, padding=how.padding)]
    steps.append(v2.RandomHorizontalFlip(how.flip))
    fill = [round(value) for value in preprocessing.mean] if how.auto_fill == "mean" else None
    auto = {"interpolation": InterpolationMode(how.auto_interpolation), "fill": fill}
    if how.auto_augment == "ta_wide":
        steps.append(v2.TrivialAugmentWide(**auto))
    elif how.auto_augment != "none":
        steps.append(v2.AutoAugment(AutoAugmentPolicy(how.auto_augment), **auto))
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32), v2.Normalize(preprocessing.mean, preprocessing.std)]
    if how.erase:
        # Normalised, the mean colour is 0, and noise of the colours' standard deviation is N(0, 1).
        value = {"mean": 0, "noise": "random"}[how.erase_with]
        steps.append(v2.RandomErasing(how.erase, how.erase_area, value=value))
    return v2.Compose(steps)


def batch_transform(how: Augmentation, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """What mixes images [N, 3, H, W] and labels [N], which become [N, classes]; None where nothing does."""
    steps: list[v2.Transform] = []
    if how.mixup:
        steps.append(v2.MixUp(alpha=how.mixup, num_classes=num_classes))
    if how.cutmix:
        steps.append(v2.CutMix(alpha=how.cutmix, num_classes=num_classes))
    return v2.RandomChoice(steps) if steps else None
