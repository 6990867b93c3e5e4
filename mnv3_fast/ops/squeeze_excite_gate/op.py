"""``mnv3_fast::squeeze_excite_gate``: schema, fake, checks and the function that users call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mnv3_fast.gpu import dispatch
from mnv3_fast.ops import checks, registration
from mnv3_fast.ops.squeeze_excite_gate import reference

LAYERS = (
    "Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, int activation, int gate, float slope"
)


def _fake(mean, *args):
    return mean.new_empty(mean.shape)


def _flops(mean, fc1_weight, *args, out_shape=None, **kwargs) -> int:
    return 4 * mean[0] * fc1_weight[0] * fc1_weight[1]


REFERENCE = dispatch.mixed(reference.squeeze_excite_gate)
OP = registration.register(
    f"squeeze_excite_gate(Tensor mean, {LAYERS}) -> Tensor",
    REFERENCE,
    _fake,
    _flops,
    ranks=(("mean", (2,)), ("fc1_weight", (2, 4))),
)
FUNCTION = registration.differentiable("squeeze_excite_gate", OP, REFERENCE)
dispatch.register("squeeze_excite_gate", "squeeze_excite_gate", REFERENCE)


def prepare_layers(
    op: str,
    channels: int,
    device: torch.device,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    activation: str = "relu",
    gate: str = "hardsigmoid",
    slope: float = 1 / 6,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
) -> tuple:
    """The checked arguments of both squeeze-excite ops after the first, tensors of one of the dtypes each."""
    words = f"[S, C, 1, 1] or [S, C] with C = {channels}"
    _check_weight(op, "fc1_weight", fc1_weight, None, channels, words, dtypes, device)
    squeeze = fc1_weight.shape[0]
    words = f"[C, S, 1, 1] or [C, S] with C = {channels}, S = {squeeze}"
    _check_weight(op, "fc2_weight", fc2_weight, channels, squeeze, words, dtypes, device)
    if channels < 1 or squeeze < 1:
        raise ValueError(f"{op}: fc1_weight must not be empty, got {list(fc1_weight.shape)}")
    for name, bias, size in (("fc1_bias", fc1_bias, squeeze), ("fc2_bias", fc2_bias, channels)):
        if bias is not None:
            checks.check_tensor(op, name, bias, [size], f"[{size}]", dtypes, device)
    if isinstance(slope, bool) or not isinstance(slope, (int, float)):
        raise TypeError(f"{op}: slope must be a number, got {type(slope).__name__}")
    codes = checks.activation_code(op, activation), checks.gate_code(op, gate)
    return (fc1_weight, fc1_bias, fc2_weight, fc2_bias, *codes, float(slope))


def _check_weight(
    op: str, name: str, weight: Any, outputs: int | None, inputs: int, words: str, dtypes: Any, device: Any
) -> None:
    flat = isinstance(weight, Tensor) and weight.dim() == 2
    shape = [outputs, inputs] if flat else [outputs, inputs, 1, 1]
    checks.check_tensor(op, name, weight, shape, words, dtypes, device)


def prepare(
    mean: Tensor, *layers: Tensor | None, dtypes: tuple[torch.dtype, ...] | None = None, **options: Any
) -> tuple:
    """The checked arguments of the raw op; ``dtypes``, of the means, are by default those of their device."""
    op = "squeeze_excite_gate"
    checks.check_tensor(op, "mean", mean, [None, None], "[N, C]", dtypes or checks.input_dtypes(mean))
    options["dtypes"] = checks.parameter_dtypes(mean.dtype)
    return (mean, *prepare_layers(op, mean.shape[1], mean.device, *layers, **options))


def squeeze_excite_gate(
    mean: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    activation: str = "relu",
    gate: str = "hardsigmoid",
    slope: float = 1 / 6,
) -> Tensor:
    """The gate of squeeze-excite from channel means: gate(fc2(act(fc1(mean)))).

    Args:
        mean: [N, C], float32 (on a GPU also float16 or bfloat16).
        fc1_weight, fc1_bias: [S, C, 1, 1] or [S, C], and [S] or None.
        fc2_weight, fc2_bias: [C, S, 1, 1] or [C, S], and [C] or None; all four of the means' dtype or float32.
        activation: between the layers, "none", "relu", "hardswish" or "relu6".
        gate: "hardsigmoid", which is clip(slope * x + 1/2, 0, 1), or "sigmoid".
        slope: 1/6 in torch, 0.2 in Paddle.

    Returns:
        [N, C] of the means' dtype, to multiply the map with.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    layers = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    args = prepare(mean, *layers, activation=activation, gate=gate, slope=slope)
    return registration.call(OP, REFERENCE, FUNCTION, args)
