"""Checkpoints into networks: into a given one, or into the one that the checkpoint's tensors are of."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torchvision.models.mobilenetv3 import MobileNetV3
from torchvision.ops.misc import FrozenBatchNorm2d

from mnv3_fast.checkpoints.facts import METADATA, Facts, classes_of, differences, facts_of_variant
from mnv3_fast.checkpoints.fitting import fitted
from mnv3_fast.checkpoints.matching import classes_in, described, variants_like
from mnv3_fast.checkpoints.recognition import Checkpoint, chosen_variant, open_checkpoint
from mnv3_fast.models.variants import Variant, build

logger = logging.getLogger("mnv3_fast")
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Source:
    """Where a model's weights came from: its attribute ``checkpoint_source``.

    Attributes:
        family: whose names the checkpoint has: "torchvision", "timm" or "mmpretrain".
        variant: the network that it is taken for, if there is one with its shapes.
        why: why for this one.
        classes: the names of its classes, if the file has as many as the last layer has outputs.
    """

    family: str
    variant: Variant | None
    why: str
    classes: tuple[str, ...] | None


def load_checkpoint(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any], model: Model | None = None
) -> Model | nn.Module:
    """Load a checkpoint of torchvision's, timm's or mmpretrain's names, into a model of any of them.

    Averaged weights (EMA) are taken where the file has them; prefixes of wrappers are left away. Nothing in a file is
    executed.

    Args:
        path_or_state_dict: a file of ``torch.save`` or safetensors, a URL, or a dictionary: a state_dict, or what a
            trainer writes around one.
        model: what it is loaded into, strictly; its own names say how: torchvision's, ours, timm's or mmpretrain's.
            None builds the variant that the checkpoint is of, by its shapes, its metadata and its names' family; what
            is not known is the family's default, which the log tells (logger "mnv3_fast", INFO).

    Returns:
        The model; a built one is torchvision's ``MobileNetV3`` in eval mode, not accelerated. Its attribute
        ``checkpoint_source`` (:class:`Source`) tells the names' family, the variant and the classes.

    Raises:
        TypeError: for what is no path, no URL and no dictionary.
        FileNotFoundError, OSError: if there is no such file, or it cannot be downloaded.
        ValueError: if it is no checkpoint, is damaged, or does not fit; the message says why, and what would fit.
            Nothing has been loaded then.
    """
    checkpoint = open_checkpoint(path_or_state_dict)
    if model is None:
        return _built(checkpoint)
    _load(model, checkpoint)
    return model


def load_into(model: nn.Module, source: str | os.PathLike[str]) -> dict[str, Any]:
    """As :func:`load_checkpoint` into a model; gives the file's dictionary back."""
    checkpoint = open_checkpoint(source)
    _load(model, checkpoint)
    return checkpoint.content


@dataclass(frozen=True)
class Built:
    """A variant's network with a checkpoint's weights.

    Attributes:
        network: in training mode, not accelerated.
        variant: what it was built from.
        classes: the names of its classes: the checkpoint's, else the variant's, else numbers.
        content: the file's dictionary.
    """

    network: MobileNetV3
    variant: Variant
    classes: tuple[str, ...]
    content: dict[str, Any]


def build_from(variant: Variant | None, source: str | os.PathLike[str]) -> Built:
    """A variant's network with a checkpoint's weights, and as many outputs as these have: also a fine-tuned one.

    Args:
        variant: None for the one that the checkpoint is of, as :func:`load_checkpoint` finds it.
        source: a file or URL.

    Raises:
        As :func:`load_checkpoint`.
    """
    checkpoint = open_checkpoint(source)
    variant = chosen_variant(checkpoint)[0] if variant is None else variant
    model = build(variant, classes_in(checkpoint.torchvision))
    _load(model, checkpoint)
    count = model.classifier[-1].out_features
    own = variant.classes() if count == variant.num_classes else tuple(map(str, range(count)))
    return Built(model, variant, classes_of(checkpoint.content, count) or own, checkpoint.content)


def _built(checkpoint: Checkpoint) -> nn.Module:
    variant, why = chosen_variant(checkpoint)
    classes = classes_in(checkpoint.torchvision)
    if classes is None:
        raise ValueError(
            f"checkpoint: it is {described(variant)} without its last layer, which no network can be built from; "
            "give a model that has none, either"
        )
    model = build(variant, classes).eval()
    model.load_state_dict(fitted(checkpoint.state, model.state_dict()))
    _note(model, checkpoint, variant, why)
    return model


def _load(model: nn.Module, checkpoint: Checkpoint) -> None:
    state = fitted(checkpoint.state, model.state_dict())
    try:
        variant, why = chosen_variant(checkpoint)
    except ValueError:
        if checkpoint.facts.source == METADATA:
            raise
        variant, why = None, "no variant of the table has its shapes"
    if variant is not None:
        _check_rules(model, checkpoint, variant)
    model.load_state_dict(state)
    _note(model, checkpoint, variant, why)


def _check_rules(model: nn.Module, checkpoint: Checkpoint, variant: Variant) -> None:
    """The model computes with the eps, padding and gate that the weights were trained with, as far as that is known."""
    facts, rules = checkpoint.facts, model_rules(model)
    wrong = differences(rules, facts_of_variant(variant))
    if not wrong:
        return
    if facts.variant is None and facts.bn_eps is None:  # then any that its tensors and names allow
        like = [other for other in variants_like(checkpoint.torchvision) if other.family == variant.family]
        if any(not differences(rules, facts_of_variant(other)) for other in like):
            return
    words = "; ".join(f"{name} is {came} in the model, {wanted} in {variant.name}" for name, came, wanted in wrong)
    if facts.source == METADATA:
        raise ValueError(f"checkpoint: {words}; build the model with what the weights were trained with")
    logger.warning("checkpoint: %s, which the weights seem to be of: results will differ", words)


def model_rules(model: nn.Module) -> Facts:
    """What a model computes with that is in no tensor: eps, padding and the gate's slope."""
    modules = list(model.modules())
    norms = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
    eps = {module.eps for module in modules if isinstance(module, norms)}
    slopes = {module.slope for module in modules if type(module).__name__ == "Hardsigmoid" and hasattr(module, "slope")}
    same = any("Conv2dSame" in (base.__name__ for base in type(module).__mro__) for module in modules)
    gates = any(type(module).__name__ in ("SqueezeExcitation", "SqueezeExcite", "SELayer") for module in modules)
    return Facts(
        "the model",
        bn_eps=eps.pop() if len(eps) == 1 else None,
        padding="same" if same else "symmetric",
        gate_slope=(slopes.pop() if len(slopes) == 1 else 1 / 6) if gates else None,
    )


def _note(model: nn.Module, checkpoint: Checkpoint, variant: Variant | None, why: str) -> None:
    place = checkpoint.path or "a dictionary"
    taken = "no known variant" if variant is None else described(variant)
    logger.info("checkpoint: %s has %s's names; taken for %s: %s", place, checkpoint.family, taken, why)
    if variant is not None and checkpoint.facts.bn_eps is None and checkpoint.facts.variant is None:
        logger.info("checkpoint: it does not tell BatchNorm's eps; that of %s is %g", variant.name, variant.bn_eps)
    names = checkpoint.facts.classes
    fits = names is not None and classes_in(checkpoint.torchvision) in (None, len(names))
    model.checkpoint_source = Source(checkpoint.family, variant, why, names if fits else None)
