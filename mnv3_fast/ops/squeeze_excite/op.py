"""``mnv3_fast::squeeze_excite``: schema, fake, checks and the function that users call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mnv3_fast.gpu import dispatch
from mnv3_fast.ops import checks, registration
from mnv3_fast.ops.elements import empty_nhwc
from mnv3_fast.ops.squeeze_excite import reference
from mnv3_fast.ops.squeeze_excite_gate.op import LAYERS, prepare_layers


def _fake(input, *args):
    return empty_nhwc(input, *input.shape)


def _flops(input, fc1_weight, *args, out_shape=None, **kwargs) -> int:
    return 4 * input[0] * fc1_weight[0] * fc1_weight[1]


REFERENCE = dispatch.mixed(reference.squeeze_excite)
OP = registration.register(
    f"squeeze_excite(Tensor input, {LAYERS}) -> Tensor",
    REFERENCE,
    _fake,
    _flops,
    ranks=(("input", (4,)), ("fc1_weight", (2, 4))),
)
FUNCTION = registration.differentiable("squeeze_excite", OP, REFERENCE)
dispatch.register("squeeze_excite", "squeeze_excite", REFERENCE)


def prepare(
    input: Tensor, *layers: Tensor | None, dtypes: tuple[torch.dtype, ...] | None = None, **options: Any
) -> tuple:
    """The checked arguments of the raw op; ``dtypes``, of the input, are by default those of its device."""
    op = "squeeze_excite"
    checks.check_tensor(op, "input", input, [None] * 4, "[N, C, H, W]", dtypes or checks.input_dtypes(input))
    if input.shape[2] < 1 or input.shape[3] < 1:
        raise ValueError(f"{op}: input must not be empty, got {list(input.shape)}")
    options["dtypes"] = checks.parameter_dtypes(input.dtype)
    return (input, *prepare_layers(op, input.shape[1], input.device, *layers, **options))


def squeeze_excite(
    input: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    activation: str = "relu",
    gate: str = "hardsigmoid",
    slope: float = 1 / 6,
) -> Tensor:
    """Squeeze-excite: input * gate(fc2(act(fc1(mean of input)))), as ``torchvision.ops.SqueezeExcitation``.

    Args:
        input: [N, C, H, W], float32 (on a GPU also float16 or bfloat16), any strides, not empty but for the batch.
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation, gate, slope: as of ``squeeze_excite_gate``.

    Returns:
        [N, C, H, W] of the input's dtype with channels_last strides.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    layers = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    args = prepare(input, *layers, activation=activation, gate=gate, slope=slope)
    return registration.call(OP, REFERENCE, FUNCTION, args)
