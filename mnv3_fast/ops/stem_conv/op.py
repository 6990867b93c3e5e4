"""``mnv3_fast::stem_conv``: schema, fake, checks and the function that users call."""

from __future__ import annotations

import torch
from torch import Tensor

from mnv3_fast.gpu import dispatch
from mnv3_fast.ops import checks, registration
from mnv3_fast.ops.elements import convolved_size, empty_nhwc
from mnv3_fast.ops.stem_conv import reference

SCHEMA = (
    f"stem_conv(Tensor input, Tensor weight, Tensor? bias, {registration.BATCH_NORM}, Tensor? scale, Tensor? shift, "
    f"{registration.WINDOW}, int activation) -> Tensor"
)
MOST_ROWS = 256  # input channels times kernel height: the kernel's table of row pointers


def _fake(input, weight, bias, bn_w, bn_b, bn_m, bn_v, eps, scale, shift, *window_and_activation):
    size = convolved_size(input.shape[2:], weight.shape[2:], window_and_activation[:8])
    return empty_nhwc(weight if input.dtype is torch.uint8 else input, input.shape[0], weight.shape[0], *size)


def _flops(input, weight, *args, out_shape=None, **kwargs) -> int:
    return 2 * out_shape[0] * out_shape[2] * out_shape[3] * weight[0] * weight[1] * weight[2] * weight[3]


REFERENCE = dispatch.mixed(reference.stem_conv)
OP = registration.register(SCHEMA, REFERENCE, _fake, _flops, ranks=(("input", (4,)), ("weight", (4,))))
FUNCTION = registration.differentiable("stem_conv", OP, REFERENCE)
dispatch.register("stem_conv", "stem_conv", REFERENCE)


def prepare(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    batch_norm: checks.BatchNorm | None = None,
    stride: int | tuple[int, int] = 2,
    padding: checks.Padding = 1,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
) -> tuple:
    """The checked arguments of the raw op; ``dtypes``, of a float input, are by default those of its device."""
    op = "stem_conv"
    floats = dtypes or checks.input_dtypes(input)
    checks.check_tensor(op, "input", input, [None] * 4, "[N, C, H, W]", (*floats, torch.uint8))
    channels, device, is_bytes = input.shape[1], input.device, input.dtype is torch.uint8
    allowed = floats if is_bytes else checks.parameter_dtypes(input.dtype)
    words = f"[O, C, kh, kw] with C = {channels}"
    checks.check_tensor(op, "weight", weight, [None, channels, None, None], words, allowed, device)
    allowed = checks.parameter_dtypes(weight.dtype) if is_bytes else allowed
    outputs, _, kernel_h, kernel_w = weight.shape
    if outputs < 1 or channels < 1 or kernel_h < 1 or kernel_w < 1:
        raise ValueError(f"{op}: weight must not be empty, got {list(weight.shape)}")
    if channels * kernel_h > MOST_ROWS or kernel_h > 64:
        raise ValueError(
            f"{op}: input channels times kernel height must be at most {MOST_ROWS}, got {channels} x {kernel_h}; "
            "a convolution of that many channels is no stem"
        )
    if bias is not None:
        checks.check_tensor(op, "bias", bias, [outputs], f"[O] with O = {outputs}", allowed, device)
    for name, vector in (("scale", scale), ("shift", shift)):
        if vector is not None:
            checks.check_tensor(op, name, vector, [channels], f"[C] with C = {channels}", allowed, device)
    window = checks.check_window(op, stride, padding, dilation)
    checks.check_output(op, input.shape[2:], weight.shape[2:], window)
    norm = checks.check_batch_norm(op, batch_norm, outputs, device, allowed)
    return (input, weight, bias, *norm, scale, shift, *window, checks.activation_code(op, activation))


def stem_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    batch_norm: checks.BatchNorm | None = None,
    stride: int | tuple[int, int] = 2,
    padding: checks.Padding = 1,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """The first convolution: act(BN(conv(input * scale + shift))), straight from an image.

    Args:
        input: [N, C, H, W], float32 (on a GPU also float16 or bfloat16) or uint8, any strides (NCHW and channels_last
            are read as they are).
        weight: [O, C, kh, kw], like all vectors of the input's dtype or float32; beside bytes of any of the float
            dtypes, and the vectors of the weight's or float32. C * kh at most 256.
        bias: [O] or None.
        batch_norm: (weight, bias, running_mean, running_var, eps), folded in the op.
        stride: int or (h, w), default 2.
        padding: int, (h, w), (left, right, top, bottom) or "same" as of ``depthwise_conv``, default 1; its zeros come
            after scale and shift.
        dilation: int or (h, w), default 1.
        activation: "none", "relu" or "hardswish".
        scale, shift: [C] each; the image is x * scale + shift.

    Returns:
        [N, O, OH, OW] of the input's dtype (of bytes: the weight's) with channels_last strides.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    norm = {"batch_norm": batch_norm, "activation": activation, "scale": scale, "shift": shift}
    return registration.call(OP, REFERENCE, FUNCTION, prepare(input, weight, bias, **window, **norm))
