"""``mnv3_fast::depthwise_conv`` and ``depthwise_conv_mean``: schema, fake, checks and the function that users call."""

from __future__ import annotations

import torch
from torch import Tensor

from mnv3_fast.gpu import dispatch
from mnv3_fast.ops import checks, registration
from mnv3_fast.ops.depthwise_conv import reference
from mnv3_fast.ops.elements import convolved_size, empty_nhwc

ARGUMENTS = (
    f"(Tensor input, Tensor weight, Tensor? bias, {registration.BATCH_NORM}, {registration.WINDOW}, int activation)"
)
KERNEL_SIZES = (1, 3, 5, 7)


def _fake(input, weight, bias, bn_w, bn_b, bn_m, bn_v, eps, *window_and_activation):
    size = convolved_size(input.shape[2:], weight.shape[2:], window_and_activation[:8])
    return empty_nhwc(input, input.shape[0], input.shape[1], *size)


def _fake_mean(*args):
    return _fake(*args), args[0].new_empty(args[0].shape[:2])


def _flops(input, weight, *args, out_shape=None, **kwargs) -> int:
    output = out_shape if isinstance(out_shape[0], int) else out_shape[0]
    return 2 * output[0] * output[2] * output[3] * weight[0] * weight[2] * weight[3]


RANKS = (("input", (4,)), ("weight", (4,)))

REFERENCE = dispatch.mixed(reference.depthwise_conv)
OP = registration.register(f"depthwise_conv{ARGUMENTS} -> Tensor", REFERENCE, _fake, _flops, ranks=RANKS)
FUNCTION = registration.differentiable("depthwise_conv", OP, REFERENCE)
dispatch.register("depthwise_conv", "depthwise_conv", REFERENCE)

MEAN_REFERENCE = dispatch.mixed(reference.depthwise_conv_mean)
MEAN_OP = registration.register(
    f"depthwise_conv_mean{ARGUMENTS} -> (Tensor, Tensor)", MEAN_REFERENCE, _fake_mean, _flops, ranks=RANKS
)
MEAN_FUNCTION = registration.differentiable("depthwise_conv_mean", MEAN_OP, MEAN_REFERENCE)
dispatch.register("depthwise_conv_mean", "depthwise_conv", MEAN_REFERENCE)


def prepare(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    batch_norm: checks.BatchNorm | None = None,
    stride: int | tuple[int, int] = 1,
    padding: checks.Padding = 0,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
    dtypes: tuple[torch.dtype, ...] | None = None,
) -> tuple:
    """The checked arguments of the raw op; ``dtypes``, of a float input, are by default those of its device."""
    op = "depthwise_conv"
    checks.check_tensor(op, "input", input, [None] * 4, "[N, C, H, W]", dtypes or checks.input_dtypes(input))
    channels, device, allowed = input.shape[1], input.device, checks.parameter_dtypes(input.dtype)
    words = f"[C, 1, kh, kw] with C = {channels}"
    checks.check_tensor(op, "weight", weight, [channels, 1, None, None], words, allowed, device)
    if channels < 1:
        raise ValueError(f"{op}: input must have at least one channel, got {list(input.shape)}")
    if weight.shape[2] not in KERNEL_SIZES or weight.shape[3] not in KERNEL_SIZES:
        raise ValueError(
            f"{op}: kernel size must be one of {', '.join(map(str, KERNEL_SIZES))} each way, "
            f"got {list(weight.shape[2:])}"
        )
    if bias is not None:
        checks.check_tensor(op, "bias", bias, [channels], f"[C] with C = {channels}", allowed, device)
    window = checks.check_window(op, stride, padding, dilation)
    checks.check_output(op, input.shape[2:], weight.shape[2:], window)
    norm = checks.check_batch_norm(op, batch_norm, channels, device, allowed)
    return (input, weight, bias, *norm, *window, checks.activation_code(op, activation))


def depthwise_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    batch_norm: checks.BatchNorm | None = None,
    stride: int | tuple[int, int] = 1,
    padding: checks.Padding = 0,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
    return_mean: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """A depthwise convolution: act(BN(conv(input))).

    Args:
        input: [N, C, H, W], float32 (on a GPU also float16 or bfloat16), any strides.
        weight: [C, 1, kh, kw], like all that follows of the input's dtype or float32; kh and kw one of 1, 3, 5, 7.
        bias: [C] or None.
        batch_norm: (weight, bias, running_mean, running_var, eps), folded in the op.
        stride: int or (h, w), default 1.
        padding: int, (h, w) or (left, right, top, bottom), default 0; or "same", which is TensorFlow's SAME: so many
            zeros, half of them (rounded down) in front, that OH = ceil(H / stride), for any stride.
        dilation: int or (h, w), default 1.
        activation: "none", "relu" or "hardswish".
        return_mean: also return the means over each map, from the same pass.

    Returns:
        [N, C, OH, OW] of the input's dtype with channels_last strides; with ``return_mean`` also [N, C].

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    args = prepare(input, weight, bias, batch_norm=batch_norm, activation=activation, **window)
    if return_mean:
        return registration.call(MEAN_OP, MEAN_REFERENCE, MEAN_FUNCTION, args)
    return registration.call(OP, REFERENCE, FUNCTION, args)
