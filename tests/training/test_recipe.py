"""Recipes: those of the package say what their sources say, and a user's own is refused with the reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mnv3_fast.models.variants import VARIANTS, find_variant
from mnv3_fast.training import Recipe, default_recipe, read_recipe, recipe_names
from mnv3_fast.training.recipe import Augmentation, MovingAverage, Optimizer, Schedule

MINIMAL = 'epochs = 3\nbatch = 4\nbase_batch = 8\n[optimizer]\nname = "sgd"\nlr = 0.1\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_the_package_has_these_recipes() -> None:
    assert recipe_names() == ["mmpretrain", "mmpretrain_cifar10", "timm_lamb", "torchvision_v1", "torchvision_v2"]


def test_mmpretrains_recipe_is_that_of_its_config() -> None:
    """configs/mobilenet_v3/mobilenet-v3-large_8xb128_in1k.py and _base_/datasets/imagenet_bs128_mbv3.py."""
    assert read_recipe("mmpretrain") == Recipe(
        epochs=600,
        batch=128,
        base_batch=1024,
        optimizer=Optimizer("rmsprop", 0.064, weight_decay=1e-5, alpha=0.9, momentum=0.9, eps=0.0316),
        schedule=Schedule("step", step_size=2, gamma=0.973),
        augmentation=Augmentation(
            auto_augment="imagenet", auto_fill="mean", erase=0.2, erase_area=(1 / 50, 1 / 3), erase_with="noise"
        ),
    )


def test_torchvisions_recipes_are_those_of_its_command_lines() -> None:
    """references/classification/README.md, and pytorch/vision#3995 with #5560."""
    first, second = read_recipe("torchvision_v1"), read_recipe("torchvision_v2")
    assert first.optimizer == read_recipe("mmpretrain").optimizer
    assert first.schedule == read_recipe("mmpretrain").schedule
    assert (first.epochs, first.batch, first.average) == (600, 128, 3)
    assert (first.augmentation.auto_augment, first.augmentation.erase) == ("imagenet", 0.2)
    assert second == Recipe(
        epochs=600,
        batch=128,
        base_batch=1024,
        optimizer=Optimizer("sgd", 0.5, weight_decay=2e-5, norm_weight_decay=0.0, momentum=0.9),
        schedule=Schedule("cosine", warmup_epochs=5, warmup_factor=0.01),
        augmentation=Augmentation(
            size=176, auto_augment="ta_wide", auto_interpolation="bilinear", erase=0.1, mixup=0.2, cutmix=1.0, repetitions=4
        ),
        moving_average=MovingAverage(0.99998, steps=32, adjust=True),
        label_smoothing=0.1,
    )  # fmt: skip


def test_timms_recipe_is_what_is_known_of_it() -> None:
    """huggingface/pytorch-image-models#1021: lamb-cosine-lr0.00500-wd0.100000-...-m0.1-...-d0.1-ls0.1, 450 epochs."""
    recipe = read_recipe("timm_lamb")
    assert (recipe.epochs, recipe.label_smoothing, recipe.dropout) == (450, 0.1, 0.1)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("lamb", 5e-3, 0.1)
    assert (recipe.augmentation.mixup, recipe.augmentation.cutmix, recipe.schedule.name) == (0.1, 0, "cosine")


def test_every_variant_has_a_recipe() -> None:
    for variant in VARIANTS.values():
        assert default_recipe(variant) in recipe_names()
    assert default_recipe(find_variant("mobilenet-v3-large_8xb128_in1k")) == "mmpretrain"
    assert default_recipe(find_variant("mobilenet-v3-small_8xb16_cifar10")) == "mmpretrain_cifar10"
    timm = dataclasses.replace(find_variant("mobilenet-v3-small_8xb128_in1k"), family="timm")
    assert default_recipe(timm) == "timm_lamb"


def test_what_a_file_leaves_out_has_its_default(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, MINIMAL)) == Recipe(3, 4, 8, Optimizer("sgd", 0.1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (MINIMAL + "momentun = 0.9\n", "there is no key optimizer.momentun; did you mean momentum?"),
        ("epoch = 3\n" + MINIMAL, "there is no key epoch; did you mean epochs?"),
        (MINIMAL + "[zzz]\n", "there is no key zzz; there are epochs, batch, base_batch"),
        (MINIMAL.replace("epochs = 3", ""), "epochs is missing"),
        (MINIMAL.replace("lr = 0.1", ""), "optimizer.lr is missing"),
        (MINIMAL.replace("0.1", '"0.1"'), "optimizer.lr must be of type float, got '0.1'"),
        (MINIMAL.replace("3", "3.5"), "epochs must be of type int, got 3.5"),
        (MINIMAL.replace("3", "true"), "epochs must be of type int, got True"),
        (MINIMAL.replace("3", "0"), "epochs must be finite and at least 1, got 0"),
        (MINIMAL.replace("0.1", "nan"), "optimizer.lr must be finite and at least 0, got nan"),
        (MINIMAL.replace("0.1", "1" + 400 * "0"), "optimizer.lr must be a finite number, got one beyond the floats"),
        (MINIMAL.replace("sgd", "lamb") + "betas = [0.9, 9]\n", "optimizer.betas must be from 0 to 1, got 9.0"),
        (MINIMAL.replace("sgd", "lamb") + "betas = [nan, 0.9]\n", "optimizer.betas must be from 0 to 1, got nan"),
        (MINIMAL.replace("sgd", "lion"), "optimizer.name must be one of rmsprop, sgd, adamw, lamb, got 'lion'"),
        (MINIMAL + "alpha = 0.9\n", "optimizer.alpha has no meaning for sgd"),
        (MINIMAL + '[schedule]\nname = "step"\nstep_size = 2\n', "schedule step needs gamma"),
        (MINIMAL + '[schedule]\nname = "cosine"\ngamma = 0.9\n', "schedule.gamma has no meaning for cosine"),
        (MINIMAL + "[schedule]\nwarmup_epochs = 3\n", "3 epochs of warm-up of 3 in all"),
        (MINIMAL + '[schedule]\nname = "multistep"\nmilestones = 3\n', "schedule.milestones must be a list of some"),
        (MINIMAL + "[augmentation]\nerase = 1.5\n", "augmentation.erase must be from 0 to 1, got 1.5"),
        (MINIMAL + "[augmentation]\narea = [0.5]\n", "augmentation.area must be a list of 2 numbers, got \\[0.5\\]"),
        (MINIMAL + "[augmentation]\narea = [0.9, 0.1]\n", "augmentation.area must be two shares, the smaller one first"),
        (MINIMAL + "[moving_average]\nsteps = 2\n", "moving_average.decay is missing"),
        ("schedule = 3\n" + MINIMAL, "schedule must be a table, got 3"),
        ("epochs =", "mine.toml is no TOML"),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^recipe: .*{reason}"):
        read_recipe(written(tmp_path, text))


def test_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^recipe: 'mine' is unknown; there are mmpretrain, .*, or a .toml file$"):
        read_recipe("mine")
    with pytest.raises(FileNotFoundError, match="^recipe: there is no file .*none.toml$"):
        read_recipe(tmp_path / "none.toml")
