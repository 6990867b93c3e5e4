"""Recipes: how a network is trained, as TOML files that are read and never executed.

``recipes/`` beside this file has those of the sources that the variants come from; a user's own file has the same keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
import types
import typing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from mnv3_fast.models.variants import Variant

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Table = TypeVar("Table")

OPTIMIZER_OPTIONS = {
    "rmsprop": ("alpha", "momentum", "eps"),
    "sgd": ("momentum", "nesterov"),
    "adamw": ("betas", "eps"),
    "lamb": ("betas", "eps"),
}
"""The optimizers and which keys of ``[optimizer]`` belong to each, besides lr and the weight decays."""

SCHEDULE_OPTIONS = {"constant": (), "step": ("step_size", "gamma"), "multistep": ("milestones", "gamma"), "cosine": ()}
"""The same of ``[schedule]``, besides the warm-up's."""

OWN_DECAYS = ("norm_weight_decay", "bias_weight_decay")

FAMILY_RECIPES = {"torchvision": "torchvision_v1", "timm": "timm_lamb"}
"""The recipe of a family's variants; of all others mmpretrain's, which is torchvision's first, with other erasing."""


@dataclass(frozen=True)
class Optimizer:
    """``[optimizer]``. ``norm_weight_decay`` is that of BatchNorm's weights and biases, ``bias_weight_decay`` that of
    the other biases; where they are not given, ``weight_decay`` is theirs."""

    name: Literal["rmsprop", "sgd", "adamw", "lamb"]
    lr: float
    weight_decay: float = 0.0
    norm_weight_decay: float | None = None
    bias_weight_decay: float | None = None
    momentum: float | None = None
    alpha: float | None = None
    eps: float | None = None
    betas: tuple[float, float] | None = None
    nesterov: bool | None = None


@dataclass(frozen=True)
class Schedule:
    """``[schedule]``, in epochs; a warm-up is linear, from ``warmup_factor`` times the learning rate."""

    name: Literal["constant", "step", "multistep", "cosine"] = "constant"
    step_size: int | None = None
    milestones: tuple[int, ...] | None = None
    gamma: float | None = None
    warmup_epochs: int = 0
    warmup_factor: float = 0.01


@dataclass(frozen=True)
class Augmentation:
    """``[augmentation]``: what happens to a training image, in this order.

    ``crop`` is "resized" (a random part of ``area`` of the image, resized) or "padded" (after ``padding`` pixels of
    black at each side, a random window), to ``size`` pixels, else the variant's. ``auto_fill`` is what an operation of
    AutoAugment leaves empty. ``erase`` is the probability that a rectangle of ``erase_area`` of the image is blanked,
    with the mean colour or with noise. ``mixup`` and ``cutmix`` are the alphas of their Beta distributions, 0 for none;
    where both are given, each batch has one of them, drawn. ``repetitions`` is how often an image comes in a row, each
    time in another guise; an epoch keeps its length.
    """

    crop: Literal["resized", "padded"] = "resized"
    size: int | None = None
    area: tuple[float, float] = (0.08, 1.0)
    padding: int = 0
    flip: float = 0.5
    auto_augment: Literal["none", "imagenet", "cifar10", "ta_wide"] = "none"
    auto_interpolation: Literal["nearest", "bilinear"] = "nearest"
    auto_fill: Literal["black", "mean"] = "black"
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.33)
    erase_with: Literal["mean", "noise"] = "mean"
    mixup: float = 0.0
    cutmix: float = 0.0
    repetitions: int = 1


@dataclass(frozen=True)
class MovingAverage:
    """``[moving_average]``: an exponential one of weights and BatchNorm statistics, every ``steps`` iterations.

    With ``adjust`` 1 - decay is multiplied by batch size x steps / epochs, as torchvision's training script does, so
    that the decay means the same for any of these.
    """

    decay: float
    steps: int = 1
    adjust: bool = False


@dataclass(frozen=True)
class Recipe:
    """A recipe. ``batch`` is that of one process, ``base_batch`` the batch of all together that ``lr`` is meant for.

    ``average`` is how many of the checkpoints that last raised the accuracy are averaged at the end, 0 for none.
    ``model`` names a variant, for a recipe that is a whole configuration.
    """

    epochs: int
    batch: int
    base_batch: int
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    augmentation: Augmentation = Augmentation()
    moving_average: MovingAverage | None = None
    label_smoothing: float = 0.0
    dropout: float | None = None
    sync_batch_norm: bool = False
    average: int = 0
    model: str | None = None

    def __post_init__(self) -> None:
        _check_options("optimizer", self.optimizer, OPTIMIZER_OPTIONS)
        _check_options("schedule", self.schedule, SCHEDULE_OPTIONS)
        for name in SCHEDULE_OPTIONS[self.schedule.name]:
            if getattr(self.schedule, name) is None:
                raise ValueError(f"recipe: schedule {self.schedule.name} needs {name}")
        for name, value, low, high in _ranges(self):
            if not low <= value <= high:
                raise ValueError(f"recipe: {name} must be {_between(low, high)}, got {value}")
        for name in ("area", "erase_area"):
            low, high = getattr(self.augmentation, name)
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"recipe: augmentation.{name} must be two shares, the smaller one first, got {low, high}"
                )
        if self.schedule.warmup_epochs >= self.epochs and self.schedule.warmup_epochs:
            raise ValueError(f"recipe: {self.schedule.warmup_epochs} epochs of warm-up of {self.epochs} in all")


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("mnv3_fast.training") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_recipe(source: str | os.PathLike[str]) -> Recipe:
    """A recipe by its name, or from a TOML file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown name, a file that is no TOML, an unknown key, a value of another type or range; the
            message names it, and for a key what is like it.
    """
    text = os.fspath(source)
    if text.endswith(".toml"):
        if not Path(text).is_file():
            raise FileNotFoundError(f"recipe: there is no file {text}")
        content = Path(text).read_bytes()
    else:
        if text not in recipe_names():
            raise ValueError(f"recipe: {text!r} is unknown; there are {', '.join(recipe_names())}, or a .toml file")
        content = (resources.files("mnv3_fast.training") / "recipes" / f"{text}.toml").read_bytes()
    try:
        table = tomllib.loads(content.decode("utf-8"))
    except ValueError as error:  # of the encoding as of the syntax
        raise ValueError(f"recipe: {text} is no TOML: {error}") from error
    return _read_table(Recipe, table, "")


def default_recipe(variant: Variant) -> str:
    """The name of the recipe that a variant is trained with where none is given."""
    if variant.family == "mmpretrain" and variant.name.endswith("cifar10"):
        return "mmpretrain_cifar10"
    return FAMILY_RECIPES.get(variant.family, "mmpretrain")


def _ranges(recipe: Recipe) -> list[tuple[str, float, float, float]]:
    """Every number that must lie in a range: its name, itself, the least and the greatest that it may be."""
    most = sys.float_info.max
    image, schedule, average = recipe.augmentation, recipe.schedule, recipe.moving_average
    found: list[tuple[str, float | None, float, float]] = [
        ("epochs", recipe.epochs, 1, most),
        ("batch", recipe.batch, 1, most),
        ("base_batch", recipe.base_batch, 1, most),
        ("average", recipe.average, 0, most),
        ("label_smoothing", recipe.label_smoothing, 0, 1),
        ("dropout", recipe.dropout, 0, 1),
        *((f"optimizer.{name}", getattr(recipe.optimizer, name), 0, most) for name in ("lr", "weight_decay", "eps")),
        *((f"optimizer.{name}", getattr(recipe.optimizer, name), 0, most) for name in OWN_DECAYS),
        *((f"optimizer.{name}", getattr(recipe.optimizer, name), 0, 1) for name in ("momentum", "alpha")),
        *(("optimizer.betas", value, 0, 1) for value in recipe.optimizer.betas or ()),
        ("schedule.step_size", schedule.step_size, 1, most),
        ("schedule.gamma", schedule.gamma, 0, most),
        ("schedule.warmup_epochs", schedule.warmup_epochs, 0, most),
        ("schedule.warmup_factor", schedule.warmup_factor, 1e-9, 1),
        ("augmentation.size", image.size, 1, 65536),
        ("augmentation.padding", image.padding, 0, 65536),
        ("augmentation.repetitions", image.repetitions, 1, most),
        *((f"augmentation.{name}", getattr(image, name), 0, 1) for name in ("flip", "erase")),
        *((f"augmentation.{name}", getattr(image, name), 0, most) for name in ("mixup", "cutmix")),
    ]
    if average is not None:
        found += [("moving_average.decay", average.decay, 0, 1), ("moving_average.steps", average.steps, 1, most)]
    return [(name, value, low, high) for name, value, low, high in found if value is not None]


def _between(low: float, high: float) -> str:
    return f"finite and at least {low:g}" if high == sys.float_info.max else f"from {low:g} to {high:g}"


def _check_options(section: str, table: Any, known: dict[str, tuple[str, ...]]) -> None:
    """Refuse a key that another optimizer or schedule has: it would have no effect."""
    for name in {name for names in known.values() for name in names} - set(known[table.name]):
        if getattr(table, name) is not None:
            raise ValueError(f"recipe: {section}.{name} has no meaning for {table.name}")


def _read_table(cls: type[Table], table: Any, path: str) -> Table:
    """A dataclass from a table of a file."""
    if not isinstance(table, dict):
        raise ValueError(f"recipe: {path.rstrip('.')} must be a table, got {table!r}")
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(hints)}"
            raise ValueError(f"recipe: there is no key {path}{key}; {hint}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in table and field.default is dataclasses.MISSING:
            raise ValueError(f"recipe: {path}{field.name} is missing")
    return cls(**{key: _read_value(hints[key], value, path + key) for key, value in table.items()})


def _read_value(hint: Any, value: Any, name: str) -> Any:
    """A value as the field wants it; integers pass for floats, lists for tuples."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if dataclasses.is_dataclass(hint):
        return _read_table(hint, value, f"{name}.")  # type: ignore[arg-type]
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"recipe: {name} must be one of {', '.join(typing.get_args(hint))}, got {value!r}")
        return value
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        size = None if kinds[-1] is Ellipsis else len(kinds)
        if not isinstance(value, list) or (size is not None and len(value) != size):
            raise ValueError(f"recipe: {name} must be a list of {size or 'some'} numbers, got {value!r}")
        return tuple(_read_value(kinds[0], item, name) for item in value)
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"recipe: {name} must be a finite number, got one beyond the floats") from error
    if type(value) is not hint:
        raise ValueError(f"recipe: {name} must be of type {hint.__name__}, got {value!r}")
    return value
