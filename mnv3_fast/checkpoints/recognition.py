"""What a checkpoint is: whose names it has, which variant its tensors are of, what it says of itself."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from mnv3_fast.checkpoints.downloads import local_path
from mnv3_fast.checkpoints.facts import Facts, adjusted, differences, facts_of, facts_of_variant
from mnv3_fast.checkpoints.files import read_checkpoint, state_of
from mnv3_fast.checkpoints.fitting import recognise, to_torchvision
from mnv3_fast.checkpoints.matching import (
    described,
    nearest,
    shapes_of,
    shapes_without_last,
    variant_named,
    variants_like,
)
from mnv3_fast.models.variants import Variant


@dataclass(frozen=True)
class Checkpoint:
    """What was found in a file.

    Attributes:
        content: its dictionary.
        state: its state_dict, under the names that it has there.
        torchvision: the same under torchvision's names.
        family: whose names it has.
        facts: what it says of its network beside the tensors.
        path: the file, if it is one.
    """

    content: dict[str, Any]
    state: dict[str, Any]
    torchvision: dict[str, Tensor]
    family: str
    facts: Facts
    path: Path | None


def open_checkpoint(source: str | os.PathLike[str] | Mapping[str, Any]) -> Checkpoint:
    """Read a file or take a dictionary, and see what it is.

    Raises:
        As :func:`load_checkpoint`.
    """
    if isinstance(source, Mapping):
        content, path = dict(source), None
        metadata = getattr(source, "_metadata", None)
        facts = facts_of(content if metadata is None else source, None)
    else:
        content = read_checkpoint(source)
        path = local_path(source)
        facts = facts_of(content, path)
    state = state_of(content)
    naming = recognise(state)
    return Checkpoint(content, state, to_torchvision(state, naming), naming.family, facts, path)


DOUBT = "would fit, too, with other eps, padding or preprocessing"


def chosen_variant(checkpoint: Checkpoint, name: str | None = None) -> tuple[Variant, str]:
    """As :func:`table_variant`, with the eps, padding, slope and preprocessing that the file itself tells."""
    variant, why = table_variant(checkpoint, name)
    return adjusted(variant, checkpoint.facts), why


def table_variant(checkpoint: Checkpoint, name: str | None = None) -> tuple[Variant, str]:
    """The variant of the table that a checkpoint is of, and why that one.

    Args:
        checkpoint: its names do not matter, its shapes do.
        name: of the variant, where it is known; else the file's own word, then its name if it is a published file,
            then the first of the table that has its names' family and agrees with what else the file says.

    Raises:
        ValueError: if no variant has its shapes, or the named one has others.
    """
    state, facts = checkpoint.torchvision, checkpoint.facts
    like = variants_like(state)
    named = name or facts.variant
    if named is not None:
        variant = variant_named(named)
        if shapes_of(variant) != shapes_without_last(state):
            words = f"they are those of {described(like[0])}" if like else nearest(state)
            raise ValueError(f"checkpoint: its tensors are none of {described(variant)}, which it was named; {words}")
        return variant, "it was named" if name else f"by {facts.source}"
    if not like:
        raise ValueError(f"checkpoint: no known MobileNetV3 has its shapes; {nearest(state)}")
    published = _by_file_name(like, checkpoint.path)
    if published is not None:
        return published, "its file has the name of published weights"
    own = [variant for variant in like if variant.family == checkpoint.family] or like
    agreeing = [variant for variant in own if not differences(facts, facts_of_variant(variant))] or own
    others = ", ".join(variant.name for variant in agreeing[1:])
    why = f"by its shapes and {checkpoint.family}'s names"
    return agreeing[0], f"{why}; {others} {DOUBT}" if others else why


def _by_file_name(variants: list[Variant], path: Path | None) -> Variant | None:
    """The variant with the weights that are published under a file's name, if that has a digest in it."""
    if path is None or not re.search(r"[-_][0-9a-f]{8}\.", path.name):
        return None
    for variant in variants:
        for weights in variant.weights:
            if PurePosixPath(weights.url).name == path.name:
                return variant.with_weights(weights.tag)
    return None
