"""The first convolution for GPUs: a product of matrices of output pixels x taps and taps x outputs, tiles of both.

The matrix of taps is gathered from the image as it lies there (NCHW or NHWC, float or bytes), normalised on the way,
with zeros where the padding is. The image is small beside the output, so that its narrow loads do not matter; the
output is stored in 128 bits. See README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mnv3_fast.gpu.elements import activate
from mnv3_fast.gpu.launch import Launch

INTS = (
    "rows", "height", "width", "out_height", "out_width", "channels", "outputs", "tiles_n", "kernel_h", "kernel_w",
    "batch_stride", "channel_stride", "row_stride", "pixel_stride",
    "stride_h", "stride_w", "pad_left", "pad_top", "dilation_h", "dilation_w",
)  # fmt: skip


@triton.jit(do_not_specialize=INTS)
def stem_conv_kernel(
    input,  # [N, channels, height, width] with the four strides
    weight,  # [outputs, kernel_h * kernel_w * channels]
    bias,  # [outputs], fp32
    scale,  # [channels], if NORMALIZE
    shift,
    output,  # [rows, outputs]
    rows,  # pixels of the output: N * out_height * out_width
    height,
    width,
    out_height,
    out_width,
    channels,
    outputs,  # in units of UNIT
    tiles_n,
    kernel_h,
    kernel_w,
    batch_stride,
    channel_stride,
    row_stride,
    pixel_stride,
    stride_h,
    stride_w,
    pad_left,
    pad_top,
    dilation_h,
    dilation_w,
    ACTIVATION: tl.constexpr,
    NORMALIZE: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,  # more rows than an int32 counts
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,  # multiplies 16-bit operands as fp32, for where tensor cores are imitated wrongly
):
    outputs = outputs * UNIT
    row_tile = tl.program_id(0) // tiles_n
    column = (tl.program_id(0) - row_tile * tiles_n) * TILE_N + tl.arange(0, TILE_N)
    column_inside = column < outputs
    if WIDE:
        row_tile = row_tile.to(tl.int64)
    row = row_tile * TILE_M + tl.arange(0, TILE_M)
    row_inside = row < rows
    line = row // out_width
    image = line // out_height
    y0 = ((line - image * out_height) * stride_h - pad_top).to(tl.int32)
    x0 = ((row - line * out_width) * stride_w - pad_left).to(tl.int32)
    # Wide, since an image may hold more than 2^31 elements.
    start = image.to(tl.int64) * batch_stride + y0.to(tl.int64) * row_stride + x0.to(tl.int64) * pixel_stride

    taps = kernel_h * kernel_w * channels
    acc = tl.zeros((TILE_M, TILE_N), tl.float32)
    for first in range(0, taps, TILE_K):
        k = first + tl.arange(0, TILE_K)
        tap = k // channels
        channel = k - tap * channels
        i = tap // kernel_w
        y = i * dilation_h
        x = (tap - i * kernel_w) * dilation_w
        offset = y.to(tl.int64) * row_stride + x.to(tl.int64) * pixel_stride + channel.to(tl.int64) * channel_stride
        at_y = y0[:, None] + y[None, :]
        at_x = x0[:, None] + x[None, :]
        inside = row_inside[:, None] & (k < taps)[None, :]
        inside &= (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width)
        a = tl.load(input + start[:, None] + offset[None, :], mask=inside, other=0).to(tl.float32)
        if NORMALIZE:
            factor = tl.load(scale + channel, mask=k < taps, other=0.0)
            summand = tl.load(shift + channel, mask=k < taps, other=0.0)
            a = tl.where(inside, a * factor[None, :] + summand[None, :], 0.0)
        b_mask = (k < taps)[:, None] & column_inside[None, :]
        b = tl.load(weight + column[None, :] * taps + k[:, None], mask=b_mask, other=0.0)
        if UPCAST:
            a = a.to(weight.dtype.element_ty).to(tl.float32)
            acc = tl.dot(a, b.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(a.to(weight.dtype.element_ty), b, acc, input_precision=PRECISION)

    acc += tl.load(bias + column, mask=column_inside, other=0.0)[None, :]
    place = output + row.to(tl.int64)[:, None] * outputs + column[None, :]
    value = activate(acc, ACTIVATION).to(output.dtype.element_ty)
    tl.store(place, value, mask=row_inside[:, None] & column_inside[None, :])


@dataclass(frozen=True)
class Configuration:
    """Tile of a program, and its warps."""

    tile_m: int
    tile_n: int
    tile_k: int
    warps: int


def configuration(dtype: torch.dtype, outputs: int) -> Configuration:
    """All taps of 3 channels and 3x3 in one step, 16 outputs (those of MobileNetV3) or 32 at a time."""
    return Configuration(128 if dtype != torch.float32 else 64, 16 if outputs <= 16 else 32, 32, 4)


def launches(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    kernel: tuple[int, int],
    window: Sequence[int],
    activation: int,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    upcast: bool = False,
) -> list[Launch]:
    """The launch that computes one layer; none for an empty batch.

    Args:
        input: [N, C, H, W] of any strides, of the weight's dtype, uint8 or another float dtype.
        weight: [O, kh * kw * C] (``mnv3_fast.gpu.packing.pack_stem``), of the compute dtype.
        bias: [O] float32.
        output: [N, O, OH, OW] of the compute dtype, strides (OH*OW*O, 1, OW*O, O).
        kernel: kh, kw.
        window: stride h, w, padding left, right, top, bottom, dilation h, w.
        activation: 0 none, 1 relu, 2 hardswish.
        scale, shift: [C] float32, both or neither: the image is read as x * scale + shift, padded with zeros.
        upcast: multiply 16-bit operands in fp32, without tensor cores.
    """
    n, channels, height, width = input.shape
    outputs, out_height, out_width = output.shape[1:]
    rows = n * out_height * out_width
    if rows * outputs == 0:
        return []
    chosen = configuration(weight.dtype, outputs)
    tiles_n = -(-outputs // chosen.tile_n)
    vector = 16 // output.element_size()
    unit = vector if outputs % vector == 0 else 1
    strides = input.stride()
    arguments = {
        "input": input, "weight": weight, "bias": bias, "scale": bias if scale is None else scale,
        "shift": bias if shift is None else shift, "output": output,
        "rows": rows, "height": height, "width": width, "out_height": out_height, "out_width": out_width,
        "channels": channels, "outputs": outputs // unit, "tiles_n": tiles_n,
        "kernel_h": kernel[0], "kernel_w": kernel[1], "batch_stride": strides[0], "channel_stride": strides[1],
        "row_stride": strides[2], "pixel_stride": strides[3], "stride_h": window[0], "stride_w": window[1],
        "pad_left": window[2], "pad_top": window[4], "dilation_h": window[6], "dilation_w": window[7],
    }  # fmt: skip
    constants = {
        "ACTIVATION": activation, "NORMALIZE": scale is not None, "UNIT": unit, "WIDE": rows >= 2**31 - chosen.tile_m,
        "TILE_M": chosen.tile_m, "TILE_N": chosen.tile_n, "TILE_K": chosen.tile_k,
        "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee", "UPCAST": upcast,
    }  # fmt: skip
    grid = (-(-rows // chosen.tile_m) * tiles_n, 1, 1)
    return [Launch(stem_conv_kernel, grid, arguments, constants, chosen.warps)]
