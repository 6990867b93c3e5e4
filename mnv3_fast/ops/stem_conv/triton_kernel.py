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

from mnv3_fast.gpu.elements import activate, within
from mnv3_fast.gpu.launch import Launch
from mnv3_fast.gpu.precision import dot_precision

INTS = (
    "height", "width", "out_height", "out_width", "outputs", "tiles_h", "tiles_w", "tiles_n",
    "batch_stride", "channel_stride", "row_stride", "pixel_stride",
    "stride_h", "stride_w", "pad_left", "pad_top", "dilation_h", "dilation_w",
)  # fmt: skip


@triton.jit(do_not_specialize=INTS)
def stem_conv_kernel(
    input,  # [N, CHANNELS, height, width] with the four strides
    weight,  # [outputs, KERNEL_H * KERNEL_W * CHANNELS]
    bias,  # [outputs], fp32
    scale,  # [CHANNELS], if NORMALIZE
    shift,
    output,  # [N, out_height, out_width, outputs]
    height,
    width,
    out_height,
    out_width,
    outputs,  # in units of UNIT
    tiles_h,
    tiles_w,
    tiles_n,
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
    CHANNELS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NORMALIZE: tl.constexpr,
    UNIT: tl.constexpr,
    TILE_H: tl.constexpr,  # a tile of TILE_H x TILE_W pixels of one image
    TILE_W: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,  # multiplies 16-bit operands as fp32, for where tensor cores are imitated wrongly
):
    outputs = outputs * UNIT
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W * CHANNELS
    tile = tl.program_id(0) // tiles_n
    column = (tl.program_id(0) - tile * tiles_n) * TILE_N + tl.arange(0, TILE_N)
    column_inside = column < outputs
    row_of_tiles = tile // tiles_w
    image = row_of_tiles // tiles_h
    pixel = tl.arange(0, TILE_H * TILE_W)
    out_y = (row_of_tiles - image * tiles_h) * TILE_H + pixel // TILE_W
    out_x = (tile - row_of_tiles * tiles_w) * TILE_W + pixel % TILE_W
    y0 = out_y * stride_h - pad_top
    x0 = out_x * stride_w - pad_left
    # Wide, since an image may hold more than 2^31 elements.
    start = input + image.to(tl.int64) * batch_stride + (y0.to(tl.int64) * row_stride + x0 * pixel_stride)

    acc = tl.zeros((TILE_H * TILE_W, TILE_N), tl.float32)
    for first in range(0, TAPS, TILE_K):
        k = first + tl.arange(0, TILE_K)
        channel = k % CHANNELS
        y = k // (KERNEL_W * CHANNELS) * dilation_h
        x = k // CHANNELS % KERNEL_W * dilation_w
        offset = channel.to(tl.int64) * channel_stride + (y.to(tl.int64) * row_stride + x * pixel_stride)
        # Taps x pixels, so that neighbouring threads read neighbouring pixels.
        inside = within(y[:, None] + y0[None, :], height) & within(x[:, None] + x0[None, :], width)
        inside &= (k < TAPS)[:, None]
        a = tl.load(start[None, :] + offset[:, None], mask=inside, other=0).to(tl.float32)
        if NORMALIZE:
            factor = tl.load(scale + channel, mask=k < TAPS, other=0.0)
            summand = tl.load(shift + channel, mask=k < TAPS, other=0.0)
            a = tl.where(inside, a * factor[:, None] + summand[:, None], 0.0)
        a = tl.trans(a.to(weight.dtype.element_ty))
        b_mask = (k < TAPS)[:, None] & column_inside[None, :]
        b = tl.load(weight + column[None, :] * TAPS + k[:, None], mask=b_mask, other=0.0)
        if UPCAST:
            acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(a, b, acc, input_precision=PRECISION)

    acc += tl.load(bias + column, mask=column_inside, other=0.0)[None, :]
    place = (image.to(tl.int64) * out_height + out_y) * out_width + out_x
    mask = ((out_y < out_height) & (out_x < out_width))[:, None] & column_inside[None, :]
    value = activate(acc, ACTIVATION).to(output.dtype.element_ty)
    tl.store(output + place[:, None] * outputs + column[None, :], value, mask=mask)


@dataclass(frozen=True)
class Configuration:
    """Tile of a program (pixels down and across, outputs, taps of a step), and its warps."""

    tile_h: int
    tile_w: int
    tile_n: int
    tile_k: int
    warps: int


def configuration(dtype: torch.dtype, outputs: int) -> Configuration:
    """All taps of 3 channels and 3x3 in one step, 16 outputs (those of MobileNetV3) or 32 at a time; 112 is 7 x 16."""
    return Configuration(4 if dtype == torch.float32 else 8, 16, 16 if outputs <= 16 else 32, 32, 4)


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
        activation: 0 none, 1 relu, 2 hardswish, 3 relu6.
        scale, shift: [C] float32, both or neither: the image is read as x * scale + shift, padded with zeros.
        upcast: multiply 16-bit operands in fp32, without tensor cores.
    """
    n, channels, height, width = input.shape
    outputs, out_height, out_width = output.shape[1:]
    if n * outputs == 0:
        return []
    chosen = configuration(weight.dtype, outputs)
    tiles_h, tiles_w = -(-out_height // chosen.tile_h), -(-out_width // chosen.tile_w)
    tiles_n = -(-outputs // chosen.tile_n)
    vector = 16 // output.element_size()
    unit = vector if outputs % vector == 0 else 1
    strides = input.stride()
    arguments = {
        "input": input, "weight": weight, "bias": bias, "scale": bias if scale is None else scale,
        "shift": bias if shift is None else shift, "output": output,
        "height": height, "width": width, "out_height": out_height, "out_width": out_width,
        "outputs": outputs // unit, "tiles_h": tiles_h, "tiles_w": tiles_w, "tiles_n": tiles_n,
        "batch_stride": strides[0], "channel_stride": strides[1], "row_stride": strides[2], "pixel_stride": strides[3],
        "stride_h": window[0], "stride_w": window[1], "pad_left": window[2], "pad_top": window[4],
        "dilation_h": window[6], "dilation_w": window[7],
    }  # fmt: skip
    constants = {
        "CHANNELS": channels, "KERNEL_H": kernel[0], "KERNEL_W": kernel[1],
        "ACTIVATION": activation, "NORMALIZE": scale is not None, "UNIT": unit,
        "TILE_H": chosen.tile_h, "TILE_W": chosen.tile_w, "TILE_N": chosen.tile_n, "TILE_K": chosen.tile_k,
        "PRECISION": dot_precision(weight.dtype), "UPCAST": upcast,
    }  # fmt: skip
    grid = (n * tiles_h * tiles_w * tiles_n, 1, 1)
    return [Launch(stem_conv_kernel, grid, arguments, constants, chosen.warps)]
