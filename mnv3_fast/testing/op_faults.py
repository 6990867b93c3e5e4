"""Faults to plant in one call of an op: the rule for ops must find each of them.

A fault changes the arguments that our kernel gets; torch and fp64 get the right ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mnv3_fast.testing.cases import Case, block, depthwise, fold, pointwise, squeeze_excite, stem
from mnv3_fast.testing.compare import Plant
from mnv3_fast.testing.edges import EDGES

Call = tuple[tuple, dict[str, Any]]


@dataclass(frozen=True)
class OpFault:
    """A case and the fault to plant in it."""

    case: Case
    plant: Plant


def _without_tap(weight: Tensor) -> Tensor:
    weight = weight.clone()
    weight[:, :, 0, weight.shape[3] // 2] = 0
    return weight


def lost_tap(args: tuple, keywords: dict[str, Any]) -> Call:
    """One tap of the kernel is dropped, for all channels."""
    return (args[0], _without_tap(args[1]), *args[2:]), keywords


def lost_block_tap(args: tuple, keywords: dict[str, Any]) -> Call:
    """The same in the depthwise layer of a block."""
    weight, *rest = args[1]
    return (args[0], (_without_tap(weight), *rest), *args[2:]), keywords


def wrong_eps(args: tuple, keywords: dict[str, Any]) -> Call:
    """BatchNorm's eps is torch's default."""
    return args, keywords | {"batch_norm": (*keywords["batch_norm"][:4], 1e-5)}


def wrong_folded_eps(args: tuple, keywords: dict[str, Any]) -> Call:
    """The same where the norm is the third argument."""
    return (*args[:2], (*args[2][:4], 1e-5)), keywords


def shifted_padding(args: tuple, keywords: dict[str, Any]) -> Call:
    """The padding is off by one: (p - 1, p + 1) instead of (p, p)."""
    p = keywords["padding"]
    return args, keywords | {"padding": (p - 1, p + 1, p - 1, p + 1)}


def symmetric_padding(args: tuple, keywords: dict[str, Any]) -> Call:
    """The padding does not follow the size of the input: as much in front as behind, as for stride 1."""
    assert keywords["padding"] == "same"
    return args, keywords | {"padding": tuple(side // 2 for side in args[1].shape[2:])}


def dead_gate(args: tuple, keywords: dict[str, Any]) -> Call:
    """The gate is off."""
    return args, keywords | {"gate": None}


def dead_squeeze_excite(args: tuple, keywords: dict[str, Any]) -> Call:
    """The gate of squeeze-excite is 1 whatever comes in."""
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = args[1:]
    return (args[0], fc1_weight, fc1_bias, fc2_weight * 0, fc2_bias * 0 + 10), keywords


def lost_residual_channel(args: tuple, keywords: dict[str, Any]) -> Call:
    """One channel of the residual is lost."""
    residual = keywords["residual"].clone()
    residual[:, 0] = 0
    return args, keywords | {"residual": residual}


def lost_residual(args: tuple, keywords: dict[str, Any]) -> Call:
    """A block forgets its residual."""
    return args, keywords | {"residual": False}


def lost_activation(args: tuple, keywords: dict[str, Any]) -> Call:
    """The last stage but one of a network forgets its activation."""
    name, arguments, options = args[1][-2]
    return (args[0], [*args[1][:-2], (name, arguments, options | {"activation": "none"}), args[1][-1]]), keywords


def swapped_images(args: tuple, keywords: dict[str, Any]) -> Call:
    """The images of a batch change places."""
    return (args[0].flip(0), *args[1:]), keywords


def _fault(op: str, build: Any, plant: Plant) -> OpFault:
    return OpFault(Case(op, f"planted_{plant.__name__}", build), plant)


_POINTWISE = pointwise(2, 24, 6, 7, 40, gated=True, residual=True)
_DEPTHWISE = depthwise(2, 24, 9, 11, 3, stride=2, activation="hardswish", return_mean=True)
_SAME = depthwise(2, 24, 10, 12, 5, stride=2, padding="same")
_BLOCK = block(2, 16, 9, 8, 40, 16, 5, 8, residual=True)

OP_FAULTS: dict[str, OpFault] = {
    "fold_batch_norm: wrong BatchNorm eps": _fault("fold_batch_norm", fold(24, 1, 3, 3), wrong_folded_eps),
    "stem_conv: wrong BatchNorm eps": _fault("stem_conv", stem(2, 3, 9, 11, 16), wrong_eps),
    "stem_conv: padding off by one": _fault("stem_conv", stem(2, 3, 10, 12, 16), shifted_padding),
    "stem_conv: symmetric padding": _fault("stem_conv", stem(2, 3, 10, 12, 16, padding="same"), symmetric_padding),
    "pointwise_conv: dead gate": _fault("pointwise_conv", _POINTWISE, dead_gate),
    "pointwise_conv: lost residual channel": _fault("pointwise_conv", _POINTWISE, lost_residual_channel),
    "pointwise_conv: swapped images": _fault("pointwise_conv", _POINTWISE, swapped_images),
    "depthwise_conv: lost tap": _fault("depthwise_conv", _DEPTHWISE, lost_tap),
    "depthwise_conv: padding off by one": _fault("depthwise_conv", _DEPTHWISE, shifted_padding),
    "depthwise_conv: symmetric padding": _fault("depthwise_conv", _SAME, symmetric_padding),
    "squeeze_excite: dead gate": _fault("squeeze_excite", squeeze_excite(2, 24, 5, 6, 8), dead_squeeze_excite),
    "inverted_residual: lost tap": _fault("inverted_residual", _BLOCK, lost_block_tap),
    "inverted_residual: lost residual": _fault("inverted_residual", _BLOCK, lost_residual),
    "inverted_residual: swapped images": _fault("inverted_residual", _BLOCK, swapped_images),
    "network: lost activation": _fault("network", dict(EDGES["network"])["whole"], lost_activation),
    "network: swapped images": _fault("network", dict(EDGES["network"])["whole"], swapped_images),
}
