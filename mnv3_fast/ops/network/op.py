"""``mnv3_fast::network``: a chain of stages from their original tensors; folding and packing are cached inside.

A captured graph holds a whole MobileNetV3 as one op that needs no state beyond the state_dict, stays right after an
update, and runs the same plan as the model that it was captured from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.engine.cache import Plan
from mnv3_fast.engine.kinds import BLOCK, LINEAR, POINTWISE, POOL, STEM
from mnv3_fast.engine.packed_op import PackedOp
from mnv3_fast.engine.packing import pack_stages
from mnv3_fast.ops import checks
from mnv3_fast.ops.elements import empty_nhwc
from mnv3_fast.ops.inverted_residual import op as inverted_residual
from mnv3_fast.ops.inverted_residual.layout import flags_of
from mnv3_fast.ops.network import reference
from mnv3_fast.ops.network.layout import Stage, check_stage_weights, has_bias, join, measure, split
from mnv3_fast.ops.pointwise_conv import op as pointwise_conv
from mnv3_fast.ops.stem_conv import op as stem_conv


def _fake(input: Tensor, tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]) -> Tensor:
    stages = split(tensors, spec, constants)
    check_stage_weights(stages)
    shape, _ = measure(input.shape, stages)
    like = input if input.is_floating_point() else tensors[0]  # it may be of bytes
    return empty_nhwc(like, *shape) if len(shape) == 4 else like.new_empty(shape)


def _flops(input: Any, tensors: Any, spec: Any, constants: Any, *, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * measure(input, split(tensors, spec, constants))[1]


def _pack(tensors: list[Tensor], spec: Sequence[int], constants: Sequence[float]) -> Plan:
    return pack_stages(split(tensors, spec, constants))


def _stages(tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]) -> list[Stage]:
    stages = split(tensors, spec, constants)
    check_stage_weights(stages)
    return stages


PACKED = PackedOp("network", reference.network, _fake, _flops, _pack, _stages)
OP, FUNCTION = PACKED.op, PACKED.function


def prepare(input: Tensor, stages: Sequence[tuple]) -> tuple[Tensor, list[Tensor], list[int], list[float]]:
    """The checked arguments of the raw op."""
    op = "network"
    floats = checks.input_dtypes(input)
    checks.check_tensor(op, "input", input, [None] * 4, "[N, C, H, W]", (*floats, torch.uint8))
    if not isinstance(stages, (tuple, list)) or not stages:
        raise TypeError(f"{op}: stages must be a list of at least one stage, got {type(stages).__name__}")
    found: list[Stage] = []
    shape: Sequence[int] = input.shape
    dtype = input.dtype
    for i, row in enumerate(stages):
        if not isinstance(row, (tuple, list)) or not row or row[0] not in _STAGES:
            raise ValueError(f"{op}: stage {i} must be one of {', '.join(_STAGES)} and its arguments, got {row!r:.60}")
        name, arguments, options = row[0], row[1] if len(row) > 1 else (), row[2] if len(row) > 2 else {}
        if len(row) > 3 or not isinstance(arguments, (tuple, list)) or not isinstance(options, dict):
            raise TypeError(f"{op}: stage {i} must be (name, arguments, options), got {row!r:.60}")
        if (name == "stem_conv") != (i == 0) and (name == "stem_conv" or input.dtype is torch.uint8):
            raise ValueError(f"{op}: stage {i} is {name}; a stem_conv stands first, and only it takes uint8 images")
        if (name == "linear") != (len(shape) == 2) or (name == "pool" and i == 0):
            raise ValueError(f"{op}: stage {i} is {name} and gets {list(shape)}; pool follows a map, linear the pool")
        pixel = torch.empty((), dtype=dtype, device=input.device)
        found.append(_STAGES[name](pixel.expand(shape), *arguments, **options))  # a map of no memory, to check against
        shape, _ = measure(shape, found[-1:])
        dtype = dtype if dtype.is_floating_point else found[0].tensors[0].dtype  # of bytes the stem makes its own
    return input, *join(found)


def _stem(input: Tensor, *args: Any, **options: Any) -> Stage:
    _, weight, bias, *norm, scale, shift, window, activation = _grouped(stem_conv.prepare(input, *args, **options))
    if scale is not None or shift is not None:
        raise ValueError("network: stem_conv with scale and shift is for mnv3_fast.freeze")
    return _conv(STEM, weight, bias, norm, [activation, *window])


def _grouped(raw: tuple) -> tuple:
    """The raw arguments of stem_conv with the window as one."""
    return (*raw[:10], raw[10:18], raw[18])


def _pointwise(input: Tensor, *args: Any, **options: Any) -> Stage:
    _, weight, bias, *norm, gate, residual, activation = pointwise_conv.prepare(input, *args, **options)
    if gate is not None or residual is not None:
        raise ValueError("network: pointwise_conv with gate or residual stands in an inverted_residual only")
    return _conv(POINTWISE, weight, bias, norm, [activation])


def _conv(kind: int, weight: Tensor, bias: Tensor | None, norm: list, spec: list[int]) -> Stage:
    flags, tensors = flags_of("network", weight, bias, norm[:4])
    return Stage(kind, [flags, *spec], [norm[4]], tensors)


def _block(input: Tensor, *args: Any, **options: Any) -> Stage:
    _, tensors, spec, constants = inverted_residual.prepare(input, *args, **options)
    return Stage(BLOCK, spec, constants, tensors)


def _pool(input: Tensor) -> Stage:
    return Stage(POOL, [], [], [])


def _linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none", scale: float = 1.0
) -> Stage:
    op = "network: linear"
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"{op}: scale must be a number, got {type(scale).__name__}")
    features = input.shape[1]
    words, dtypes, device = f"[O, I] with I = {features}", checks.parameter_dtypes(input.dtype), input.device
    checks.check_tensor(op, "weight", weight, [None, features], words, dtypes, device)
    if weight.shape[0] < 1:
        raise ValueError(f"{op}: weight must not be empty, got {list(weight.shape)}")
    if bias is not None:
        outputs = weight.shape[0]
        checks.check_tensor(op, "bias", bias, [outputs], f"[O] with O = {outputs}", dtypes, device)
    tensors = [weight] if bias is None else [weight, bias]
    return Stage(LINEAR, [has_bias(bias), checks.activation_code(op, activation)], [float(scale)], tensors)


_STAGES = {
    "stem_conv": _stem,
    "inverted_residual": _block,
    "pointwise_conv": _pointwise,
    "pool": _pool,
    "linear": _linear,
}


def network(input: Tensor, stages: Sequence[tuple]) -> Tensor:
    """A chain of stages in one op, each without its input: a MobileNetV3 or a part of one.

    Args:
        input: [N, C, H, W], float32 (on a GPU also float16 and bfloat16), any strides; uint8 if the first stage is a
            stem_conv.
        stages: (name, arguments, options) each, with the arguments and options of ``mnv3_fast.ops.<name>`` after its
            input: "stem_conv" (first only; no scale and shift), "inverted_residual", "pointwise_conv" (no gate and
            residual), "pool" (the mean over the map), and after it "linear" (weight [O, I], bias [O] or None;
            ``activation`` "none", "relu" or "hardswish"; ``scale``, which its input is multiplied by, default 1).

    Returns:
        [N, O, OH, OW] of the input's dtype with channels_last strides, or [N, F] if there is a pool.

    Raises:
        TypeError, ValueError: naming the stage or its argument, what came and what is wanted.
    """
    return PACKED.run(*prepare(input, stages))
