"""Augmentation: sizes, normalising, erasing and mixing."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mnv3_fast.models.variants import Preprocessing
from mnv3_fast.training import read_recipe, recipe_names
from mnv3_fast.training.recipe import Augmentation
from mnv3_fast.training.transforms import batch_transform, training_transform

HOW = Preprocessing(256, 224, "bilinear", (120.0, 110.0, 100.0), (50.0, 25.0, 10.0))


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_makes_images_of_its_size(name: str) -> None:
    how = read_recipe(name).augmentation
    photo = Image.effect_noise((300, 250), 80).convert("RGB")
    image = training_transform(how, HOW)(photo)
    assert image.shape == (3, how.size or 224, how.size or 224)
    assert image.dtype == torch.float32


def test_images_are_normalised() -> None:
    photo = Image.new("RGB", (64, 64), (220, 110, 90))
    image = training_transform(Augmentation(), HOW)(photo)
    assert torch.equal(image, torch.tensor([2.0, 0.0, -1.0]).view(3, 1, 1).expand(3, 224, 224))


@pytest.mark.parametrize("with_what", ["mean", "noise"])
def test_erasing_is_after_normalising(with_what: str) -> None:
    how = Augmentation(erase=1.0, erase_area=(0.3, 0.3), erase_with=with_what)  # type: ignore[arg-type]
    image = training_transform(how, HOW)(Image.new("RGB", (64, 64), (220, 210, 90)))
    erased = image[:, image[1] != 4.0]
    assert erased.shape[1] == pytest.approx(0.3 * 224 * 224, rel=0.02)
    if with_what == "mean":
        assert torch.equal(erased, torch.zeros_like(erased))
    else:  # five standard errors of 15,000 draws
        assert erased.mean(1).abs().max() < 5 / 120
        assert (erased.std(1) - 1).abs().max() < 5 / 120 / 2**0.5


def test_what_is_left_empty_has_the_mean_colour() -> None:
    how = Augmentation(auto_augment="imagenet", auto_fill="mean")
    rotated = [step for step in training_transform(how, HOW).transforms if isinstance(step, v2.AutoAugment)]
    assert list(rotated[0].fill) == [120, 110, 100]


def test_mixing_makes_probabilities() -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    assert batch_transform(Augmentation(), 4) is None
    for how in (Augmentation(mixup=0.2), Augmentation(cutmix=1.0), Augmentation(mixup=0.2, cutmix=1.0)):
        mix = batch_transform(how, 4)
        assert mix is not None
        mixed, soft = mix(images, labels)
        assert mixed.shape == images.shape
        assert soft.shape == (6, 4)
        assert torch.allclose(soft.sum(1), torch.ones(6))
        assert not torch.equal(mixed, images)
