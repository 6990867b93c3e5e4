"""What is evaluated: a checkpoint's network, ready to run, and the images that fit it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

import torch

from mnv3_fast.checkpoints import build_from, classes_of
from mnv3_fast.data.folders import Split, read_split
from mnv3_fast.data.running import Runner, fastest
from mnv3_fast.data.state import digest_of_split, digest_of_weights
from mnv3_fast.gpu import Progress
from mnv3_fast.models.variants import Preprocessing, variant_of

WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Subject:
    """A network and images to evaluate it on.

    Attributes:
        name: of the variant.
        checkpoint: where its weights are from.
        runner: runs it.
        preprocessing: how files become its images.
        split: the images.
        classes: what predictions are called.
        device, amp: where it computes, and in which dtype autocast does, if it is on.
        warnings: what makes the accuracy doubtful.
        about: what the accuracy depends on, as text.
    """

    name: str
    checkpoint: str
    runner: Runner
    preprocessing: Preprocessing
    split: Split
    classes: tuple[str, ...]
    device: torch.device
    amp: torch.dtype | None
    warnings: tuple[str, ...]
    about: dict[str, str]


def load_subject(
    config: str,
    checkpoint: str,
    root: str | os.PathLike[str],
    part: str,
    device: torch.device,
    amp: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Subject:
    """The network of a name with a checkpoint's weights and as many outputs as these have, and a split that fits.

    Raises:
        OSError, ValueError: for an unknown name, a checkpoint that cannot be read or does not fit, and all that
            :func:`read_split` raises.
    """
    variant = variant_of(config, "test")
    built = build_from(variant, checkpoint)
    split = read_split(root, part, len(built.classes))
    names = classes_of(built.content, len(built.classes)) or ()
    weights = digest_of_weights(built.network.state_dict())
    runner = fastest(built.network, variant.preprocessing, device, amp is not None, progress)
    about = {
        "model": variant.name,
        "weights": weights,
        "preprocessing": str(variant.preprocessing),
        "data": os.path.realpath(split.folder),
        "images": digest_of_split(split),
        "device": device.type,
        "dtype": "float32" if amp is None else f"autocast to {str(amp).removeprefix('torch.')}",
        "way": runner.way,
    }
    warnings = [*_doubts(built.content, variant.name, names, split)]
    if runner.way != "frozen" and amp is None:
        warnings.append(f"the network is not frozen: {runner.reason}")
    classes = split.classes or built.classes
    how = variant.preprocessing
    return Subject(variant.name, str(checkpoint), runner, how, split, classes, device, amp, tuple(warnings), about)


def _doubts(loaded: dict[str, Any], name: str, names: tuple[str, ...], split: Split) -> list[str]:
    """What a checkpoint says of itself that does not go with the data or the model that was named."""
    found = []
    meta = loaded.get("meta")
    trained = meta.get("variant") if isinstance(meta, dict) else None
    if isinstance(trained, str) and trained != name:
        found.append(f"the checkpoint is of {trained}, not of {name}: padding, eps and preprocessing may differ")
    same_kind = set(names) == set(split.classes) or all(WORDNET_ID.fullmatch(name) for name in names)
    if names and split.classes and same_kind and names != split.classes:
        label = next(i for i, pair in enumerate(zip(names, split.classes, strict=True)) if pair[0] != pair[1])
        found.append(
            f"the checkpoint's classes are not the folders': label {label} is {names[label]} there and "
            f"{split.classes[label]} here, so that the accuracy says little"
        )
    return found
