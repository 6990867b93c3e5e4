"""State dicts of other libraries under torchvision's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import MobileNetV3

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def mmpretrain_names(model: MobileNetV3) -> dict[str, str]:
    """mmpretrain's name of every entry of a torchvision network's state_dict."""
    names: dict[str, str] = {}
    for index, child in enumerate(model.features):
        here, there = f"features.{index}", f"backbone.layer{index}"
        if not hasattr(child, "block"):
            names |= _conv(here, there)
            continue
        parts = list(child.block)
        has_squeeze = len(parts) > 2 and not isinstance(parts[-2], nn.Sequential)
        roles = ["depthwise_conv", *(["se"] if has_squeeze else []), "linear_conv"]
        roles = (["expand_conv"] if len(parts) > len(roles) else []) + roles
        for position, role in enumerate(roles):
            names |= (_squeeze if role == "se" else _conv)(f"{here}.block.{position}", f"{there}.{role}")
    for here, there in (("classifier.0", "head.layers.0.fc"), ("classifier.3", "head.layers.1.fc")):
        names |= {f"{here}.{part}": f"{there}.{part}" for part in ("weight", "bias")}
    return names


def torchvision_state(state: dict[str, Tensor], model: MobileNetV3) -> dict[str, Tensor]:
    """A state_dict of mmpretrain's or torchvision's under the names of ``model``.

    Raises:
        ValueError: if it is of neither, or does not fit the model; the message names what is missing or differs.
    """
    expected = model.state_dict()
    names = {key: key for key in expected}
    if any(key.startswith("backbone.") for key in state):
        names = mmpretrain_names(model)
    elif not any(key in expected for key in state):
        raise ValueError(f"checkpoint: unknown names (such as {next(iter(state))}); mmpretrain's or torchvision's fit")
    found = {}
    for ours, theirs in names.items():
        if theirs not in state and ours.endswith("num_batches_tracked"):
            found[ours] = expected[ours]
        elif theirs not in state:
            raise ValueError(f"checkpoint: {theirs} is missing")
        elif not _is_plain(state[theirs]):
            raise ValueError(f"checkpoint: {theirs} is no dense tensor of real numbers")
        elif expected[ours].is_floating_point() and not state[theirs].is_floating_point():
            dtype = str(state[theirs].dtype).removeprefix("torch.")
            raise ValueError(f"checkpoint: {theirs} is {dtype}, no floating-point tensor")
        elif state[theirs].shape != expected[ours].shape:
            shapes = f"is {list(state[theirs].shape)}, the model's is {list(expected[ours].shape)}"
            raise ValueError(f"checkpoint: {theirs} {shapes}")
        else:
            found[ours] = state[theirs]
    unknown = [key for key in state if key not in set(names.values())]
    if unknown:
        raise ValueError(f"checkpoint: {len(unknown)} entries have no place in the model, such as {unknown[0]}")
    return found


def _is_plain(tensor: Tensor) -> bool:
    dense = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
    return dense and not tensor.is_quantized and not tensor.is_complex()


def _conv(here: str, there: str) -> dict[str, str]:
    names = {f"{here}.0.weight": f"{there}.conv.weight"}
    return names | {f"{here}.1.{part}": f"{there}.bn.{part}" for part in NORM}


def _squeeze(here: str, there: str) -> dict[str, str]:
    return {f"{here}.fc{i}.{part}": f"{there}.conv{i}.conv.{part}" for i in (1, 2) for part in ("weight", "bias")}
