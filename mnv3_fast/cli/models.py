"""The names that ``--model`` takes, and the classifier that one stands for."""

from __future__ import annotations

from contextlib import nullcontext

import torchvision
from torch import nn
from torchvision.models._meta import _IMAGENET_CATEGORIES

from mnv3_fast.checkpoints import classes_of, load_into
from mnv3_fast.cli.common import downloading
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.models.preprocessing import scale_and_shift
from mnv3_fast.models.variants import VARIANTS, Preprocessing, build, find_variant
from mnv3_fast.prediction import Classifier

RANDOM = ("random weights, the classes mean nothing",)
TORCHVISION = {"large": "mobilenet_v3_large", "small": "mobilenet_v3_small"}


def model_names() -> list[str]:
    """Every name that :func:`classifier_of` takes, but for aliases."""
    return [*TORCHVISION, *VARIANTS]


def classifier_of(name: str, weights: str | None, checkpoint: str | None) -> Classifier:
    """The frozen network of a name with torchvision's weights, a checkpoint, or "random" ones.

    Raises:
        ValueError: for an unknown name or weights, or a checkpoint that does not fit.
        OSError: if a file is not there or cannot be downloaded.
    """
    network, how, classes = network_of(name, weights)
    if checkpoint is not None:
        classes = classes_of(load_into(network, checkpoint), len(classes)) or classes
    scale, shift = scale_and_shift(how)
    engine = freeze(network.eval(), scale=scale, shift=shift)
    return Classifier(engine, how, classes, RANDOM if weights == "random" else ())


def network_of(name: str, weights: str | None) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    """The network of a name, its preprocessing and classes; with random weights, torchvision's, or none to speak of.

    Raises:
        ValueError: for an unknown name or weights.
        OSError: if weights cannot be downloaded.
    """
    short = {full: short for short, full in TORCHVISION.items()}.get(name, name)
    if short in TORCHVISION:
        network, how, classes = torchvision_network(short, weights)
    else:
        try:
            variant = find_variant(name)
        except ValueError:
            raise ValueError(f"--model {name!r} is unknown; there are {', '.join(model_names())}") from None
        if weights not in (None, "random"):
            raise ValueError(f"--weights {weights}: there are none for {name}, give --checkpoint")
        network, how = build(variant), variant.preprocessing
        classes = variant.classes()
    if weights == "random":
        from mnv3_fast.testing.parity import randomize_

        randomize_(network, 0, how.crop)
    return network, how, classes


def torchvision_network(name: str, weights: str | None) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    """torchvision's network, downloaded if weights are named, with the preprocessing that these want."""
    full = TORCHVISION[name]
    enum = torchvision.models.get_model_weights(full)
    if weights in (None, "random"):
        chosen, how = None, enum.IMAGENET1K_V1.transforms()
    else:
        if weights not in enum.__members__ and weights != "DEFAULT":
            names = ", ".join(dict.fromkeys(["DEFAULT", *enum.__members__, "random"]))
            raise ValueError(f"--weights {weights} does not exist for {full}; there are {names}")
        chosen = enum[weights]
        how = chosen.transforms()
    with downloading(chosen.url) if chosen is not None else nullcontext():
        network = torchvision.models.get_model(full, weights=chosen)
    mean, std = (tuple(255 * value for value in values) for values in (how.mean, how.std))
    preprocessing = Preprocessing(how.resize_size[0], how.crop_size[0], how.interpolation.value, mean, std)
    return network, preprocessing, tuple(_IMAGENET_CATEGORIES)
