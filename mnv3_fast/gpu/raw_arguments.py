"""The checks of raw arguments on a GPU: those of the public op, whatever the device of the tensors.

Each gives the raw arguments back, or raises TypeError or ValueError naming the argument, what came and what is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from mnv3_fast.ops import checks
from mnv3_fast.ops.elements import ACTIVATIONS, GATES, pads_same


def check_stem_conv(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple:
    """The raw arguments, checked as the public op's are, whatever the device."""
    from mnv3_fast.ops.stem_conv.op import prepare

    options = {"scale": rest[5], "shift": rest[6], **_window(rest[7:15]), **_activation("stem_conv", rest[15])}
    return prepare(input, weight, bias, batch_norm=_norm(rest), **options, dtypes=checks.GPU_DTYPES)


def check_pointwise_conv(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple:
    """The same of pointwise_conv."""
    from mnv3_fast.ops.pointwise_conv.op import prepare

    options = {"gate": rest[5], "residual": rest[6], **_activation("pointwise_conv", rest[7])}
    return prepare(input, weight, bias, batch_norm=_norm(rest), **options, dtypes=checks.GPU_DTYPES)


def check_depthwise_conv(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple:
    """The same of depthwise_conv and depthwise_conv_mean."""
    from mnv3_fast.ops.depthwise_conv.op import prepare

    options = {**_window(rest[5:13]), **_activation("depthwise_conv", rest[13])}
    return prepare(input, weight, bias, batch_norm=_norm(rest), **options, dtypes=checks.GPU_DTYPES)


def check_squeeze_excite_gate(mean: Tensor, *rest: Any) -> tuple:
    """The same of squeeze_excite_gate."""
    from mnv3_fast.ops.squeeze_excite_gate.op import prepare

    return prepare(mean, *rest[:4], **_gate("squeeze_excite_gate", rest), dtypes=checks.GPU_DTYPES)


def check_squeeze_excite(input: Tensor, *rest: Any) -> tuple:
    """The same of squeeze_excite."""
    from mnv3_fast.ops.squeeze_excite.op import prepare

    return prepare(input, *rest[:4], **_gate("squeeze_excite", rest), dtypes=checks.GPU_DTYPES)


CHECK: dict[str, Callable[..., tuple]] = {
    "stem_conv": check_stem_conv,
    "pointwise_conv": check_pointwise_conv,
    "depthwise_conv": check_depthwise_conv,
    "depthwise_conv_mean": check_depthwise_conv,
    "squeeze_excite_gate": check_squeeze_excite_gate,
    "squeeze_excite": check_squeeze_excite,
}


def _norm(rest: Sequence[Any]) -> tuple | None:
    """BatchNorm as the public op takes it, of the raw arguments behind the bias."""
    return None if rest[2] is None and rest[3] is None else tuple(rest[:5])


def _window(window: Sequence[int]) -> dict[str, Any]:
    padding = "same" if pads_same(window) else tuple(window[2:6])
    return {"stride": tuple(window[:2]), "padding": padding, "dilation": tuple(window[6:8])}


def _activation(op: str, code: int) -> dict[str, str]:
    return {"activation": _name(op, "activation", code, ACTIVATIONS)}


def _gate(op: str, rest: Sequence[Any]) -> dict[str, Any]:
    return {**_activation(op, rest[4]), "gate": _name(op, "gate", rest[5], GATES), "slope": rest[6]}


def _name(op: str, argument: str, code: int, codes: dict[str, int]) -> str:
    for name, value in codes.items():
        if value == code:
            return name
    *others, last = (f"{value} ({name})" for name, value in codes.items())
    raise ValueError(f"{op}: {argument} must be {', '.join(others)} or {last}, got {code}")
