"""Models by name: what there is, and a network of it on fused kernels."""

from __future__ import annotations

import fnmatch
import math
import os
import re
from typing import Any

from torch import nn
from torchvision.models import WeightsEnum, get_model_weights

from mnv3_fast.acceleration import fuse
from mnv3_fast.checkpoints import load_into
from mnv3_fast.models.construction import build, new_last_layer
from mnv3_fast.models.families.torchvision import scaled
from mnv3_fast.models.variants import FAMILIES, VARIANTS, Variant, variant_of

READABLE = (".pth", ".safetensors")


def list_models(pattern: str = "*", *, family: str | None = None) -> list[str]:
    """The names that ``create_model`` takes, in the table's order; aliases and tags of weights are left out.

    Args:
        pattern: as a shell's, of upper or lower case: ``"*small*"``.
        family: only those of "torchvision", "timm", "mmpretrain", "keras" or "paddle".

    Raises:
        TypeError: for a pattern that is no text.
        ValueError: for an unknown family.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"list_models: pattern must be text, got {type(pattern).__name__}")
    if family is not None and family not in tuple(FAMILIES):
        raise ValueError(f"list_models: family must be one of {', '.join(FAMILIES)}, got {family!r}")
    return [
        name
        for name, variant in VARIANTS.items()
        if family in (None, variant.family) and fnmatch.fnmatchcase(name.lower(), pattern.lower())
    ]


def create_model(
    name: str,
    *,
    weights: str | WeightsEnum | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    dropout: float | None = None,
    width_mult: float = 1.0,
    reduced_tail: bool = False,
    dilated: bool = False,
) -> nn.Module:
    """Any MobileNetV3 of the table by its name, with a fused forward in eval mode.

    ``find_variant(name).preprocessing`` says how its images are prepared. Padding, BatchNorm's eps and the gate's slope
    are those of the family that the name belongs to, so take the name of the weights' own family.

    Args:
        name: of :func:`list_models`, an alias ("large", "mobilenetv3_large_100_miil"), or either with the tag of
            weights ("mobilenetv3_large_100.ra_in1k", which downloads nothing by itself).
        weights: None for fresh weights; "DEFAULT" or a tag ("IMAGENET1K_V2", "ra_in1k"), whose file is downloaded once
            into torch's hub folder. DEFAULT of a name with a tag is that tag.
        checkpoint: a path or URL of one's own weights, which must fit the network.
        num_classes: outputs. If the file of ``weights`` has another number, all else is loaded, and the last layer is
            fresh, to be trained.
        dropout: probability in the classifier, else the family's.
        width_mult, reduced_tail, dilated: of torchvision's two names, as its builders have them.

    Returns:
        torchvision's ``MobileNetV3`` in training mode; parameters have torchvision's names for every family.

    Raises:
        TypeError: for a name that is no text, a num_classes that is no whole number, a width_mult or dropout that is no
            number.
        ValueError: for an unknown name or tag (the message has what is like it), for weights of another network, for
            both weights and checkpoint, for a width_mult or dropout out of range, for options that a family does not
            have, and for a checkpoint that does not fit or may not be read.
        FileNotFoundError, OSError: for a checkpoint that does not exist, or cannot be downloaded.
    """
    if not isinstance(name, str):
        raise TypeError(f"create_model: name must be text, got {type(name).__name__}")
    if weights is not None and checkpoint is not None:
        raise ValueError("create_model: weights and checkpoint exclude each other")
    _check_classes(num_classes)
    _check_number("width_mult", width_mult)
    if dropout is not None:
        _check_number("dropout", dropout)
        if not 0 <= dropout <= 1:
            raise ValueError(f"create_model: dropout must be from 0 to 1, got {dropout}")
    tag = weights.name if isinstance(weights, WeightsEnum) else weights
    try:
        variant = _with_options(variant_of(name, "create_model"), width_mult, reduced_tail, dilated)
        if isinstance(weights, WeightsEnum):
            _check_enum(weights, variant)
        variant = variant if tag is None else variant.with_weights(tag)
    except ValueError as error:
        raise ValueError(f"create_model: {error}") from None
    if tag is None:
        model = build(variant, num_classes, dropout)
        if checkpoint is not None:
            load_into(model, checkpoint)
    else:
        model = build(variant, None, dropout)
        load_into(model, url_of(variant, tag))
        if num_classes not in (None, variant.num_classes):
            model.classifier[3] = new_last_layer(model.classifier[3], num_classes)
    fuse(model)
    return model


def url_of(variant: Variant, tag: str) -> str:
    """Where the file of a tag is; raises ValueError for a format that is not read."""
    url = variant.weights_of(tag).url
    if not url.endswith(READABLE):
        kind = url.rpartition(".")[2]
        raise ValueError(f"create_model: the weights of {variant.name} are a .{kind} file, which cannot be read: {url}")
    return url


def _with_options(variant: Variant, width_mult: float, reduced_tail: bool, dilated: bool) -> Variant:
    if (width_mult, reduced_tail, dilated) == (1, False, False):
        return variant
    if variant.family != "torchvision":
        words = "width_mult, reduced_tail and dilated are for mobilenet_v3_large and mobilenet_v3_small"
        raise ValueError(f"{words}, got {variant.name}; list_models has other widths by name")
    return scaled(variant, width_mult, reduced_tail, dilated)


def _check_enum(weights: WeightsEnum, variant: Variant) -> None:
    """torchvision's networks have weights of the same names."""
    name = re.split(r"[ .]", variant.name)[0]
    if variant.family != "torchvision" or type(weights) is not get_model_weights(name):
        raise ValueError(f"weights {weights} are of another network than {variant.name}")


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"create_model: {name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"create_model: {name} must be finite, got {value}")


def _check_classes(num_classes: int | None) -> None:
    if num_classes is None:
        return
    if not isinstance(num_classes, int) or isinstance(num_classes, bool):
        raise TypeError(f"create_model: num_classes must be a whole number, got {type(num_classes).__name__}")
    if num_classes < 1:
        raise ValueError(f"create_model: num_classes must be at least 1, got {num_classes}")
