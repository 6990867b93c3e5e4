"""Checks of the user-facing ops. Every error names the op, the argument, what came and what is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.gpu import DTYPES as GPU_DTYPES
from mnv3_fast.ops.elements import ACTIVATIONS, GATES, SAME, pads_same

BatchNorm = tuple[Tensor | None, Tensor | None, Tensor, Tensor, float]
"""weight, bias, running_mean, running_var ([C] each; weight and bias may be None) and eps."""
Padding = int | tuple[int, int] | tuple[int, int, int, int] | str
"""All sides, (h, w), (left, right, top, bottom), or "same": TensorFlow's SAME, which follows the size of the input."""
MOST = 1 << 20
"""The largest stride, padding and dilation that the kernels take."""


def input_dtypes(input: Any) -> tuple[torch.dtype, ...]:
    """The dtypes of a float input that the kernels of its device take."""
    return GPU_DTYPES if isinstance(input, Tensor) and input.device.type == "cuda" else (torch.float32,)


def parameter_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes of weights and vectors beside an input of a dtype: the same, or float32."""
    return (dtype,) if dtype is torch.float32 else (dtype, torch.float32)


def check_tensor(
    op: str,
    name: str,
    tensor: Any,
    shape: Sequence[int | None],
    words: str,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    device: torch.device | None = None,
) -> None:
    """A dense tensor of one of the dtypes, with the given sizes (None: any), on the given device.

    Raises:
        TypeError: if it is no tensor, or of another dtype or layout.
        ValueError: if its shape or device is another.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.is_nested:
        raise TypeError(f"{op}: {name} must be a dense (strided) tensor, got a nested one")
    if tensor.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense (strided) tensor, got layout {tensor.layout}")
    if tensor.dtype not in dtypes:
        *others, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise TypeError(f"{op}: {name} must be {wanted}, got {str(tensor.dtype).removeprefix('torch.')}")
    fits = tensor.dim() == len(shape)
    for i, size in enumerate(shape):
        if not fits:
            break
        if size is not None and tensor.shape[i] != size:
            fits = False
    if not fits:
        raise ValueError(f"{op}: {name} must be {words}, got {list(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{op}: {name} must be on the input's device {device}, got {tensor.device}")


def check_batch_norm(
    op: str,
    batch_norm: Any,
    channels: int,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
) -> tuple:
    """The five BatchNorm arguments of a raw op; four times None where there is none."""
    if batch_norm is None:
        return None, None, None, None, 0.0
    if not isinstance(batch_norm, (tuple, list)) or len(batch_norm) != 5:
        raise TypeError(
            f"{op}: batch_norm must be (weight, bias, running_mean, running_var, eps), got {type(batch_norm).__name__}"
            + (f" of {len(batch_norm)}" if isinstance(batch_norm, (tuple, list)) else "")
        )
    weight, bias, mean, variance, eps = batch_norm
    for name, tensor in (("weight", weight), ("bias", bias), ("running_mean", mean), ("running_var", variance)):
        if tensor is None and name in ("weight", "bias"):
            continue
        check_tensor(op, f"batch_norm {name}", tensor, [channels], f"[C] with C = {channels}", dtypes, device)
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{op}: batch_norm eps must be a number, got {type(eps).__name__}")
    if not eps >= 0:
        raise ValueError(f"{op}: batch_norm eps must be at least 0, got {eps}")
    return weight, bias, mean, variance, float(eps)


def check_pair(op: str, name: str, value: Any, least: int) -> tuple[int, int]:
    """An int or (h, w) as (h, w)."""
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(_is_int(item) for item in pair):
        raise TypeError(f"{op}: {name} must be an int or (h, w), got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}")
    if max(pair) > MOST:
        raise ValueError(f"{op}: {name} must be at most {MOST}, got {value!r}")
    return pair[0], pair[1]


def check_padding(op: str, value: Any) -> tuple[int, int, int, int]:
    """An int, (h, w) or (left, right, top, bottom) as the last; of "same" four times SAME."""
    if isinstance(value, str) and value == "same":
        return SAME, SAME, SAME, SAME
    sides = value
    if _is_int(value):
        sides = (value,) * 4
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        sides = (value[1], value[1], value[0], value[0])
    if not isinstance(sides, (tuple, list)) or len(sides) != 4 or not all(_is_int(item) for item in sides):
        raise TypeError(f"{op}: padding must be an int, (h, w), (left, right, top, bottom) or 'same', got {value!r}")
    if min(sides) < 0:
        raise ValueError(f"{op}: padding must be at least 0, got {value!r}")
    if max(sides) > MOST:
        raise ValueError(f"{op}: padding must be at most {MOST}, got {value!r}")
    return sides[0], sides[1], sides[2], sides[3]


def check_window(op: str, stride: Any, padding: Any, dilation: Any) -> tuple[int, ...]:
    """The eight window arguments of a raw op."""
    return (
        *check_pair(op, "stride", stride, 1),
        *check_padding(op, padding),
        *check_pair(op, "dilation", dilation, 1),
    )


def check_output(op: str, size: Sequence[int], kernel: Sequence[int], window: Sequence[int]) -> None:
    """The output map must not be empty. ``size`` and ``kernel`` are (h, w), ``window`` the eight window arguments."""
    left, right, top, bottom = window[2:6]
    for axis, (pixels, taps, padding, dilation) in enumerate(
        zip(size, kernel, (top + bottom, left + right), window[6:8], strict=True)
    ):
        side = "height" if axis == 0 else "width"
        if pixels < 1:
            raise ValueError(f"{op}: input {side} must be at least 1, got {pixels}")
        if not pads_same(window) and pixels + padding < dilation * (taps - 1) + 1:
            raise ValueError(
                f"{op}: input {side} {pixels} with padding {padding} is smaller than "
                f"the kernel's {dilation * (taps - 1) + 1}"
            )


def activation_code(op: str, activation: Any, name: str = "activation") -> int:
    """0 none, 1 relu, 2 hardswish."""
    return _code(op, name, activation, ACTIVATIONS)


def gate_code(op: str, gate: Any) -> int:
    """0 hardsigmoid, 1 sigmoid."""
    return _code(op, "gate", gate, GATES)


def _code(op: str, name: str, value: Any, codes: dict[str, int]) -> int:
    if not isinstance(value, str) or value not in codes:
        raise ValueError(f"{op}: {name} must be one of {', '.join(codes)}, got {value!r}")
    return codes[value]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
