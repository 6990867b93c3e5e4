"""The classifier that ``--model``, ``--weights`` and ``--checkpoint`` stand for."""

from __future__ import annotations

from torch import nn

from mnv3_fast.checkpoints import build_from
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.models.preprocessing import scale_and_shift
from mnv3_fast.models.variants import Preprocessing, find_variant
from mnv3_fast.models.zoo import create_model
from mnv3_fast.prediction import Classifier

RANDOM = ("random weights, the classes mean nothing",)
DEFAULT = "large"


def classifier_of(name: str | None, weights: str | None, checkpoint: str | None) -> Classifier:
    """The frozen network of a name with weights that are downloaded, a checkpoint, or "random" weights.

    Without a name it is what the checkpoint is of, or large.

    Raises:
        ValueError: for an unknown name or weights, or a checkpoint that does not fit.
        OSError: if a file is not there or cannot be downloaded.
    """
    if checkpoint is None:
        network, how, classes = network_of(name or DEFAULT, weights)
    else:
        built = build_from(None if name is None else find_variant(name), checkpoint)
        network, how, classes = built.network, built.variant.preprocessing, built.classes
    scale, shift = scale_and_shift(how)
    engine = freeze(network.eval(), scale=scale, shift=shift)
    return Classifier(engine, how, classes, RANDOM if weights == "random" else ())


def network_of(name: str, weights: str | None) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    """The network of a name, its preprocessing and classes; with random weights, downloaded ones, or fresh ones.

    Raises:
        ValueError: for an unknown name or weights.
        OSError: if weights cannot be downloaded.
    """
    variant, tag = find_variant(name), None if weights == "random" else weights
    variant = variant if tag is None else variant.with_weights(tag)
    network = create_model(name, weights=tag)
    if weights == "random":
        from mnv3_fast.testing.parity import randomize_

        randomize_(network, 0, variant.preprocessing.crop)
    return network, variant.preprocessing, variant.classes()
