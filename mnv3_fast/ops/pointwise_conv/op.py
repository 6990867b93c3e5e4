"""``mnv3_fast::pointwise_conv``: schema, fake, checks and the function that users call."""

from __future__ import annotations

import torch
from torch import Tensor

from mnv3_fast.gpu import dispatch
from mnv3_fast.ops import checks, registration
from mnv3_fast.ops.elements import empty_nhwc
from mnv3_fast.ops.pointwise_conv import reference

SCHEMA = (
    f"pointwise_conv(Tensor input, Tensor weight, Tensor? bias, {registration.BATCH_NORM}, Tensor? gate, "
    "Tensor? residual, int activation) -> Tensor"
)


def _fake(input, weight, bias, bn_w, bn_b, bn_m, bn_v, eps, gate, residual, activation):
    return empty_nhwc(input, input.shape[0], weight.shape[0], input.shape[2], input.shape[3])


def _flops(input, weight, *args, out_shape=None, **kwargs) -> int:
    return 2 * input[0] * input[2] * input[3] * weight[0] * weight[1]


REFERENCE = dispatch.mixed(reference.pointwise_conv)
OP = registration.register(SCHEMA, REFERENCE, _fake, _flops, ranks=(("input", (4,)), ("weight", (2, 4))))
FUNCTION = registration.differentiable("pointwise_conv", OP, REFERENCE)
dispatch.register("pointwise_conv", "pointwise_conv", REFERENCE)


def prepare(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    batch_norm: checks.BatchNorm | None = None,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
) -> tuple:
    """The checked arguments of the raw op; ``dtypes``, of a float input, are by default those of its device."""
    op = "pointwise_conv"
    checks.check_tensor(op, "input", input, [None] * 4, "[N, C, H, W]", dtypes or checks.input_dtypes(input))
    images, channels, height, width = input.shape
    device, allowed = input.device, checks.parameter_dtypes(input.dtype)
    flat = isinstance(weight, Tensor) and weight.dim() == 2
    shape = [None, channels] if flat else [None, channels, 1, 1]
    words = f"[O, C, 1, 1] or [O, C] with C = {channels}"
    checks.check_tensor(op, "weight", weight, shape, words, allowed, device)
    outputs = weight.shape[0]
    if channels < 1 or height < 1 or width < 1 or outputs < 1:
        raise ValueError(f"{op}: input and weight must not be empty, got {list(input.shape)} and {list(weight.shape)}")
    if bias is not None:
        checks.check_tensor(op, "bias", bias, [outputs], f"[O] with O = {outputs}", allowed, device)
    if gate is not None:
        words = f"[N, C] = [{images}, {channels}]"
        checks.check_tensor(op, "gate", gate, [images, channels], words, allowed, device)
    if residual is not None:
        wanted = [images, outputs, height, width]
        words = f"[N, O, H, W] = [{images}, {outputs}, {height}, {width}]"
        checks.check_tensor(op, "residual", residual, wanted, words, (input.dtype,), device)
    norm = checks.check_batch_norm(op, batch_norm, outputs, device, allowed)
    return (input, weight, bias, *norm, gate, residual, checks.activation_code(op, activation))


def pointwise_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    batch_norm: checks.BatchNorm | None = None,
    activation: str = "none",
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A 1x1 convolution: act(BN(conv(input * gate))) + residual.

    Args:
        input: [N, C, H, W], float32 (on a GPU also float16 or bfloat16), any strides.
        weight: [O, C, 1, 1] or [O, C], like all vectors and the gate of the input's dtype or float32.
        bias: [O] or None.
        batch_norm: (weight, bias, running_mean, running_var, eps), folded in the op.
        activation: "none", "relu", "hardswish" or "relu6".
        gate: [N, C]; multiplies the input as it is loaded, the product is never written.
        residual: [N, O, H, W] of the input's dtype, added last.

    Returns:
        [N, O, H, W] of the input's dtype with channels_last strides.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    options = {"batch_norm": batch_norm, "activation": activation, "gate": gate, "residual": residual}
    return registration.call(OP, REFERENCE, FUNCTION, prepare(input, weight, bias, **options))
