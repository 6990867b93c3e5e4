"""Which variants have the shapes of a state_dict, and by what it differs from those that have not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from mnv3_fast.models.families.torchvision import LARGE_ROW, SMALL_ROW, scaled
from mnv3_fast.models.families.variant import BILINEAR, STEM_CHANNELS, make_divisible
from mnv3_fast.models.variants import VARIANTS, Variant, build, find_variant

WIDTHS = tuple(step / 20 for step in range(2, 61))
"""Of torchvision's networks, which exist at any width; beside them 0.35 and the like are among these."""
LAST = "classifier.3."

Shapes = dict[str, tuple[int, ...]]


def shapes_of(variant: Variant) -> Shapes:
    """The shape of every entry of a variant's state_dict, its last layer apart."""
    return _built_shapes(
        replace(
            variant, name="", family="", dropout=0, bn_eps=1e-3, bn_momentum=0.1, preprocessing=BILINEAR, weights=(),
            default_weights=None, published=None, aliases=(), padding="symmetric", num_classes=1,
            scaling="ratio" if variant.width == 1 else variant.scaling,
        )
    )  # fmt: skip


@cache
def _built_shapes(variant: Variant) -> Shapes:
    """Of a variant without all that shapes do not depend on, so that each is built once."""
    with torch.device("meta"):
        return shapes_without_last(build(variant).state_dict())


def shapes_without_last(state: Mapping[str, Tensor]) -> Shapes:
    """Without the last layer, whose rows are the classes, and without counters."""
    return {
        key: tuple(value.shape)
        for key, value in state.items()
        if not key.startswith(LAST) and not key.endswith("num_batches_tracked")
    }


def variants_like(state: Mapping[str, Tensor]) -> list[Variant]:
    """All variants that have the shapes of a state_dict under torchvision's names, in the table's order."""
    shapes = shapes_without_last(state)
    near = [variant for variant in (*VARIANTS.values(), *_scaled(shapes)) if _may_fit(variant, shapes)]
    return [variant for variant in near if shapes_of(variant) == shapes]


def _scaled(shapes: Shapes) -> list[Variant]:
    """torchvision's networks of other widths and tails."""
    stem = _outputs(shapes, "features.0.0")
    widths = [width for width in WIDTHS if make_divisible(STEM_CHANNELS * width) == stem]
    return [
        scaled(row, width, reduced)
        for row in (LARGE_ROW, SMALL_ROW)
        for reduced in (False, True)
        for width in widths
        if (width, reduced) != (1.0, False)
    ]


def _may_fit(variant: Variant, shapes: Shapes) -> bool:
    """A quick look at the first and last channels, before the network is built for the others."""
    found = (_outputs(shapes, "features.0.0"), _outputs(shapes, "classifier.0"))
    return found == (variant.stem_channels, variant.last_channel)


def _outputs(shapes: Shapes, layer: str) -> int:
    shape = shapes.get(f"{layer}.weight", ())
    return shape[0] if shape else -1


def variant_named(name: str) -> Variant:
    """The variant of a name, also of torchvision's at other widths: "mobilenet_v3_small (width_mult=0.5)".

    Raises:
        ValueError: for an unknown name.
    """
    match = re.fullmatch(r"(\w+) \((?:width_mult=([\d.]+))?(?:, )?(reduced_tail)?(?:, )?(dilated)?\)", name)
    if match is None:
        return find_variant(name)
    row = find_variant(match[1])
    if row.family != "torchvision":
        raise ValueError(f"unknown model {name!r}: {row.name} has one width")
    width = match[2] or "1"
    if not re.fullmatch(r"\d{1,2}(\.\d+)?", width):
        raise ValueError(f"unknown model {name!r}: {width} is no width")
    return scaled(row, float(width), bool(match[3]), bool(match[4]))


def classes_in(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a state_dict under torchvision's names, if it has a last layer."""
    weight = state.get(f"{LAST}weight")
    return None if weight is None or weight.dim() != 2 else weight.shape[0]


def described(variant: Variant) -> str:
    """A variant in words: name, family and how its hidden channels follow the width."""
    scaling = "" if variant.width == 1 else f", hidden channels scaled by {variant.scaling}"
    return f"{variant.name} ({variant.family}'s{scaling})"


def how_to_build(variant: Variant) -> str:
    """The call that builds it."""
    name, _, options = variant.name.partition(" (")
    return f"mnv3_fast.create_model({name!r}{f', {options[:-1]}' if options else ''})".replace(
        "reduced_tail", "reduced_tail=True"
    )


def nearest(state: Mapping[str, Tensor]) -> str:
    """What comes closest to shapes that no variant has, and where it differs."""
    shapes = shapes_without_last(state)
    layers = len({key.split(".")[1] for key in shapes if key.startswith("features.")})
    stem = _outputs(shapes, "features.0.0")
    alike = [
        variant
        for variant in (*VARIANTS.values(), *_scaled(shapes))
        if (1 + len(variant.blocks) + variant.tails, variant.stem_channels) == (layers, stem)
    ]
    if not alike:
        return f"it has {layers} layers, the first with {max(stem, 0)} channels, as none of them has"

    def differing(variant: Variant) -> list[str]:
        wanted = shapes_of(variant)
        return [key for key in wanted | shapes if wanted.get(key) != shapes.get(key)]

    best = min(alike, key=lambda variant: len(differing(variant)))
    keys = differing(best)
    wanted, came = (list(found[keys[0]]) if keys[0] in found else "missing" for found in (shapes_of(best), shapes))
    where = f"which differs in {len(keys)} entries, first {keys[0]}: {came}, there {wanted}"
    return f"closest is {described(best)}, {where}"
