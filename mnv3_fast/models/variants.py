"""The one table of variants: what each MobileNetV3 is made of, how its images are prepared, what was published of it.

Every variant is built from torchvision's classes, so that one description and one set of kernels serves them all. The
rows are in ``families``; d-li14's MobileNetV3 has none: it scales by squeeze-excite before the activation, which is
another graph.
"""

from __future__ import annotations

import difflib
import os
from pathlib import PurePosixPath

from mnv3_fast.models.construction import block_settings, build
from mnv3_fast.models.families import keras, mmpretrain, paddle, timm, torchvision
from mnv3_fast.models.families.variant import Preprocessing, Variant, Weights, make_divisible

__all__ = [
    "FAMILIES",
    "VARIANTS",
    "Preprocessing",
    "Variant",
    "Weights",
    "block_settings",
    "build",
    "find_variant",
    "make_divisible",
    "variant_of",
]

FAMILIES = {
    module.__name__.rpartition(".")[2]: module for module in (torchvision, timm, mmpretrain, keras, paddle)
}  # fmt: skip
VARIANTS: dict[str, Variant] = {row.name: row for module in FAMILIES.values() for row in module.ROWS}


def find_variant(name: str) -> Variant:
    """The variant of a name, an alias, or of either with the tag of one of its weights (``name.tag``).

    With a tag, and with an alias that stands for certain weights, it has these weights' preprocessing and classes.

    Raises:
        TypeError: for what is no text.
        ValueError: for an unknown name or tag; the message has the names that are like it.
    """
    if not isinstance(name, str):
        raise TypeError(f"find_variant: name must be text, got {type(name).__name__}")
    for variant in VARIANTS.values():
        if name in (variant.name, *variant.aliases):
            return variant
        for weights in variant.weights:
            if name in (weights.alias, *(f"{known}.{weights.tag}" for known in (variant.name, *variant.aliases))):
                return variant.with_weights(weights.tag)
    known, dot, tag = name.partition(".")
    if dot and any(known in (variant.name, *variant.aliases) for variant in VARIANTS.values()):
        return find_variant(known).with_weights(tag)
    raise ValueError(f"unknown model {name!r}; {_near(name)}")


def _near(name: str) -> str:
    """What was perhaps meant, or where all names are."""
    words = {}
    for variant in VARIANTS.values():
        for known in (variant.name, *variant.aliases, *(weights.alias for weights in variant.weights)):
            words[(known or "").lower()] = known
    near = [words[word] for word in difflib.get_close_matches(name.lower(), words, n=5) if words[word]]
    everything = "mnv3_fast.list_models() has all names"
    return f"like it are {', '.join(near)}; {everything}" if near else f"there are {', '.join(VARIANTS)}"


def variant_of(config_or_name: str | os.PathLike[str], function: str = "variant_of") -> Variant:
    """The variant of a name, of an alias, or of a path whose file name is one; the file itself is not read.

    Args:
        config_or_name: such as ``mobilenet-v3-small-050_8xb128_in1k`` or
            ``configs/mobilenet_v3/mobilenet-v3-small-050_8xb128_in1k.py``.
        function: who asks, for the message of an error.

    Raises:
        TypeError: for what is no name and no path.
        ValueError: for an unknown name; the message lists names.
    """
    if not isinstance(config_or_name, (str, os.PathLike)):
        raise TypeError(f"{function}: config must be a name or a path, got {type(config_or_name).__name__}")
    return find_variant(PurePosixPath(os.fspath(config_or_name).replace("\\", "/")).name.removesuffix(".py"))
