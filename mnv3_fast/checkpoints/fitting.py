"""State dicts of any family's names, under the names of a model: all of it fits, or a reason why not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mnv3_fast.checkpoints.keys import COUNTER, FAMILIES, Naming, naming_of, shaped
from mnv3_fast.checkpoints.matching import classes_in, described, how_to_build, nearest, variants_like

FOREIGN = {
    r"(.*\.)?features\.\d+\.conv\.\d+\.\d+\.weight": "it is MobileNetV2 (torchvision's), not MobileNetV3",
    r"(.*\.)?features\.\d+\.conv\.\d+\.(weight|fc\.)": "it is d-li14's MobileNetV3, whose blocks with an expanding "
    "convolution have squeeze-excite before the activation, not after it: no network of torchvision, timm or "
    "mmpretrain computes the same, so its weights are of no use there",
    r".*\.(zero_point|scale|_packed_params.*)$": "it is quantized; float weights are wanted",
    r"(.*StructuredToParameterName@@|.*\._mean$|.*\._variance$|last_second_conv\.|.*\.mid_se\.conv)": "it has "
    "PaddlePaddle's names, which cannot be read yet",
    r"(.*/)?(expanded_conv|Conv/|conv_bn|MobilenetV3/)": "it has the names of Keras or TensorFlow, which cannot be "
    "read yet",
}
"""What is recognised and refused: a pattern of a name, and why."""
LISTED = 5


def recognise(state: Mapping[str, Any], what: str = "checkpoint") -> Naming:
    """How a state_dict is named.

    Raises:
        ValueError: if it is none of the families' names; the message says what it is, if that is known.
    """
    for pattern, reason in FOREIGN.items():
        example = next((key for key in state if re.match(pattern, key)), None)
        if example is not None:
            raise ValueError(f"{what}: {reason} (found by {example})")
    naming = naming_of(state)
    if naming is None:
        example = next(iter(state), "none at all")
        raise ValueError(f"{what}: unknown names (such as {example}); those of {', '.join(FAMILIES)} fit")
    return naming


def to_torchvision(state: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """The entries of a state_dict that have a place in a network, under torchvision's names, in its order."""
    found = {ours: state.get(theirs) for ours, theirs in naming.names().items()}
    return {ours: shaped(tensor, ours, "torchvision") for ours, tensor in found.items() if isinstance(tensor, Tensor)}


def from_torchvision(state: Mapping[str, Tensor], naming: Naming, family: str) -> dict[str, Tensor]:
    """Entries under torchvision's names under those of a family, in that family's order."""
    names = naming.names(family)
    return {theirs: shaped(state[ours], ours, family) for ours, theirs in names.items() if ours in state}


def fitted(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of any family under the names and in the shapes of a model's.

    Args:
        state: names of any of the families, with any of the known prefixes.
        expected: the model's own state_dict.

    Raises:
        ValueError: if the names are of none of the families, or not all of both fits; the message lists what is
            missing, has no place, or differs.
    """
    source, target = recognise(state), recognise(expected, "model")
    ours_of = {theirs: ours for ours, theirs in target.names().items()}
    wanted = {ours_of[key]: key for key in expected if key in ours_of}
    foreign = [key for key in expected if key not in ours_of]
    if foreign:
        raise ValueError(f"model: {_listed(foreign)} of its state_dict belong to no MobileNetV3; load what is around")
    names = replace(target, family=source.family, prefix=source.prefix, inside=source.inside).names()
    missing = [names[ours] for ours in wanted if names[ours] not in state and not ours.endswith(COUNTER)]
    known = {names[ours] for ours in wanted}
    known |= {names[ours] for ours in names if ours.endswith(COUNTER)}  # FrozenBatchNorm2d has none
    unexpected = [key for key in state if key not in known]
    if missing or unexpected:
        words = [_counted(missing, "is missing", "are missing")] if missing else []
        words += [_counted(unexpected, "has no place", "have no place") + " in the model"] if unexpected else []
        came, ours = to_torchvision(state, source), to_torchvision(expected, target)
        words += [_what_fits(came, ours, source.family)] if variants_like(came) not in ([], variants_like(ours)) else []
        raise ValueError(f"checkpoint: {'; '.join(words)}")
    found = {}
    for ours, key in wanted.items():
        if names[ours] in state:
            found[key] = shaped(_plain(state[names[ours]], names[ours], expected[key]), ours, target.family)
        else:
            found[key] = expected[key]
    _check_shapes(found, expected, {key: names[ours] for ours, key in wanted.items()}, source.family)
    return found


def _check_shapes(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: Mapping[str, str], family: str
) -> None:
    differing = [key for key, tensor in found.items() if tensor.shape != expected[key].shape]
    if not differing:
        return
    key = differing[0]
    shapes = f"{names[key]} is {list(found[key].shape)}, the model's is {list(expected[key].shape)}"
    more = f" ({len(differing) - 1} more differ)" if len(differing) > 1 else ""
    came, wanted = (to_torchvision(state, recognise(state)) for state in (found, expected))
    raise ValueError(f"checkpoint: {shapes}{more}; {_what_fits(came, wanted, family)}")


def _what_fits(came: Mapping[str, Tensor], wanted: Mapping[str, Tensor], family: str) -> str:
    """What the checkpoint's network is, what the model is, and how one is built that fits."""
    classes = classes_in(came)
    variants, models = variants_like(came), variants_like(wanted)
    if not variants:
        return nearest(came)
    if variants[0] in models:
        if classes == classes_in(wanted):
            return "its last layer's weight and bias are of different sizes"
        return f"it has {classes} classes, the model {classes_in(wanted)}; a model with num_classes={classes} fits"
    variant = next((variant for variant in variants if variant.family == family), variants[0])
    model = f"the model is {described(models[0])}; " if models else ""
    return f"it is {described(variant)}; {model}{how_to_build(variant)} fits"


def torchvision_state(state: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A state_dict of any family under the names of ``model``; see :func:`fitted`."""
    return fitted(state, model.state_dict())


def _plain(tensor: Any, name: str, expected: Tensor) -> Tensor:
    good = (
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_meta or tensor.is_quantized or tensor.is_complex())
    )
    if not good:
        raise ValueError(f"checkpoint: {name} is no dense tensor of real numbers")
    if expected.is_floating_point() and not tensor.is_floating_point():
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"checkpoint: {name} is {dtype}, no floating-point tensor")
    return tensor


def _counted(names: list[str], one: str, many: str) -> str:
    return f"{_listed(names)} {one if len(names) == 1 else many}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest
