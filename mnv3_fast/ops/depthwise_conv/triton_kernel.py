"""Depthwise convolution for GPUs: act(bias + sum_ij input[y s + i d - p, x s + j d - p] weight[i, j]), NHWC.

A thread computes TILE_H x TILE_W pixels of VECTOR channels: each input is loaded once in 128 bits, converted once and
multiplied into every output of the tile that it touches. Bound by memory for 3x3, by the issue of instructions for
5x5, so the tile is as large as the registers allow. Threads run over channels first, then tiles, then images, without
a gap, so that no channel count and no small map leaves lanes idle. See README.md.
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

INTS = (
    "threads", "height", "width", "out_height", "out_width", "channels", "groups", "tiles_h", "tiles_w",
    "stride_h", "stride_w", "pad_left", "pad_top", "dilation_h", "dilation_w",
)  # fmt: skip


@triton.jit
def _load(start, step, mask, COUNT: tl.constexpr):
    """Vectors at ``start`` and every ``step`` elements after it, in fp32."""
    vectors = ()
    for j in tl.static_range(COUNT):
        vectors += (tl.load(start + j * step, mask=mask, other=0.0).to(tl.float32),)
    return vectors


@triton.jit
def _load_row(start, step, mask, col, dilation, width, COUNT: tl.constexpr):
    """A row of inputs from the column ``col`` on, with the zeros of the padding, in fp32."""
    vectors = ()
    for j in tl.static_range(COUNT):
        present = mask & within(col + j * dilation, width)[:, None]
        vectors += (tl.load(start + j * step, mask=present, other=0.0).to(tl.float32),)
    return vectors


@triton.jit
def _accumulate(acc, row, taps, STEP: tl.constexpr, COUNT: tl.constexpr):
    """Adds what a row of inputs gives to a row of outputs through a row of taps."""
    after = ()
    for q in tl.static_range(len(acc)):
        value = acc[q]
        for j in tl.static_range(COUNT):
            value += row[q * STEP + j] * taps[j]
        after += (value,)
    return after


@triton.jit(do_not_specialize=INTS)
def depthwise_conv_kernel(
    input,  # [N, height, width, channels]
    weight,  # [KERNEL_H * KERNEL_W, channels]
    bias,  # [channels], fp32
    output,  # [N, out_height, out_width, channels]
    sums,  # [N, tiles_h * tiles_w, channels], fp32: of each tile's outputs, if SUMS
    threads,  # N * tiles_h * tiles_w * groups
    height,
    width,
    out_height,
    out_width,
    channels,  # in units of UNIT
    groups,  # of VECTOR channels
    tiles_h,
    tiles_w,
    stride_h,
    stride_w,
    pad_left,
    pad_top,
    dilation_h,
    dilation_w,  # 1 where TILE_W > 1
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STEP_W: tl.constexpr,  # the stride, where TILE_W > 1
    TILE_H: tl.constexpr,  # 1, or 2 where stride and dilation are 1
    TILE_W: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SUMS: tl.constexpr,
    VECTOR: tl.constexpr,
    UNIT: tl.constexpr,  # VECTOR where it divides the channels, so that the compiler knows it does; else 1
    WIDE: tl.constexpr,  # more threads than an int32 counts
    BLOCK: tl.constexpr,
):
    channels = channels * UNIT
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    thread = first * BLOCK + tl.arange(0, BLOCK)
    inside = thread < threads
    tile = thread // groups
    channel = (thread - tile * groups)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    present = inside[:, None] & (channel < channels)
    row_of_tiles = tile // tiles_w
    image = row_of_tiles // tiles_h
    out_row = (row_of_tiles - image * tiles_h) * TILE_H
    out_col = (tile - row_of_tiles * tiles_w) * TILE_W
    in_row = out_row * stride_h - pad_top
    in_col = out_col * stride_w - pad_left

    # A pointer to the tile's first input; the products are wide, since a map may hold more than 2^31 elements.
    origin = (image.to(tl.int64) * height + in_row) * width + in_col
    origin = input + origin[:, None] * channels + channel
    pitch = tl.cast(width, tl.int64) * channels * dilation_h
    step = tl.cast(channels, tl.int64) * dilation_w

    # Input row i meets tap row i for the upper outputs and tap row i - 1 for the lower ones, which are one row below.
    COLS: tl.constexpr = (TILE_W - 1) * STEP_W + KERNEL_W
    tap = weight + channel
    acc = (tl.load(bias + channel, mask=present, other=0.0),) * TILE_W
    lower = acc
    earlier = ()
    if TILE_H == 2:
        earlier = _load(tap, channels, present, KERNEL_W)
        row = _load_row(origin, step, present & within(in_row, height)[:, None], in_col, dilation_w, width, COLS)
        acc = _accumulate(acc, row, earlier, STEP_W, KERNEL_W)
    for i in range(TILE_H - 1, KERNEL_H):
        taps = _load(tap + i * KERNEL_W * channels, channels, present, KERNEL_W)
        mask = present & within(in_row + i * dilation_h, height)[:, None]
        row = _load_row(origin + i * pitch, step, mask, in_col, dilation_w, width, COLS)
        acc = _accumulate(acc, row, taps, STEP_W, KERNEL_W)
        if TILE_H == 2:
            lower = _accumulate(lower, row, earlier, STEP_W, KERNEL_W)
            earlier = taps
    if TILE_H == 2:
        mask = present & within(in_row + KERNEL_H, height)[:, None]
        row = _load_row(origin + KERNEL_H * pitch, step, mask, in_col, dilation_w, width, COLS)
        acc = acc + _accumulate(lower, row, earlier, STEP_W, KERNEL_W)

    target = (image.to(tl.int64) * out_height + out_row) * out_width + out_col
    target = output + target[:, None] * channels + channel
    total = tl.zeros((BLOCK, VECTOR), tl.float32)
    for p in tl.static_range(TILE_H):
        for q in tl.static_range(TILE_W):
            value = activate(acc[p * TILE_W + q], ACTIVATION)
            mask = present & ((out_row + p < out_height) & (out_col + q < out_width))[:, None]
            place = target + p * (tl.cast(out_width, tl.int64) * channels) + q * channels
            tl.store(place, value.to(output.dtype.element_ty), mask=mask)
            if SUMS:
                total += tl.where(mask, value, 0.0)
    if SUMS:
        tl.store(sums + tile.to(tl.int64)[:, None] * channels + channel, total, mask=present)


@dataclass(frozen=True)
class Configuration:
    """Outputs of a thread (``tile_h`` x ``tile_w`` pixels of ``vector`` channels) and threads of a program."""

    tile_h: int
    tile_w: int
    vector: int
    block: int


def configuration(dtype: torch.dtype, kernel: tuple[int, int], window: Sequence[int]) -> Configuration:
    """The largest tile that does not spill registers on any GPU that it was compiled for, sm_80 to sm_120.

    Maps of MobileNetV3 are 7 x 2^n wide. ``window`` is stride h, w, padding left, right, top, bottom, dilation h, w.
    """
    stride_h, stride_w, dilation_h, dilation_w = *window[:2], *window[6:]
    vector = 4 if dtype == torch.float32 else 8
    tile_h = 2 if stride_h == 1 and dilation_h == 1 and kernel[0] > 1 and stride_w == 1 else 1
    if stride_w > 2 or dilation_w > 1:
        tile_w = 1
    elif tile_h == 2:
        tile_w = 7 if vector == 4 and kernel[1] <= 5 else 4
    else:
        tile_w = 4 if kernel[1] > 5 or (vector == 4 and kernel[1] <= 3) else 7
    # With 256 threads ptxas does not spill a few registers to fit one more program of 128 on a multiprocessor.
    return Configuration(tile_h, tile_w, vector, 256)


def tiles(out_height: int, out_width: int, chosen: Configuration) -> tuple[int, int]:
    """Tiles of a map, down and across."""
    return -(-out_height // chosen.tile_h), -(-out_width // chosen.tile_w)


def sums_shape(output: Tensor, kernel: tuple[int, int], window: Sequence[int]) -> tuple[int, int, int]:
    """The shape [N, parts, C] of the partial sums of an output [N, C, OH, OW]."""
    n, c, out_height, out_width = output.shape
    tiles_h, tiles_w = tiles(out_height, out_width, configuration(output.dtype, kernel, window))
    return n, tiles_h * tiles_w, c


def launches(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    kernel: tuple[int, int],
    window: Sequence[int],
    activation: int,
    sums: Tensor | None = None,
) -> list[Launch]:
    """The launch that computes one layer; none for an empty batch.

    Args:
        input: [N, C, H, W], strides (H*W*C, 1, W*C, C).
        weight: [kh * kw, C] (``mnv3_fast.gpu.packing.pack_depthwise``), of the input's dtype.
        bias: [C] float32.
        output: [N, C, OH, OW] of the input's dtype, strides as the input's.
        kernel: kh, kw.
        window: stride h, w, padding left, right, top, bottom, dilation h, w.
        activation: 0 none, 1 relu, 2 hardswish, 3 relu6.
        sums: float32 of the shape :func:`sums_shape`, which receives each tile's sums of the outputs as they were
            before they were rounded; their sum over dimension 1 by H * W is the channel mean.
    """
    n, channels, height, width = input.shape
    out_height, out_width = output.shape[2:]
    if n == 0 or channels == 0:
        return []
    chosen = configuration(input.dtype, kernel, window)
    tiles_h, tiles_w = tiles(out_height, out_width, chosen)
    groups = -(-channels // chosen.vector)
    threads = n * tiles_h * tiles_w * groups
    unit = chosen.vector if channels % chosen.vector == 0 else 1
    arguments = {
        "input": input, "weight": weight, "bias": bias, "output": output, "sums": output if sums is None else sums,
        "threads": threads, "height": height, "width": width, "out_height": out_height, "out_width": out_width,
        "channels": channels // unit, "groups": groups, "tiles_h": tiles_h, "tiles_w": tiles_w,
        "stride_h": window[0], "stride_w": window[1], "pad_left": window[2], "pad_top": window[4],
        "dilation_h": window[6], "dilation_w": window[7],
    }  # fmt: skip
    constants = {
        "KERNEL_H": kernel[0], "KERNEL_W": kernel[1],
        "STEP_W": window[1] if chosen.tile_w > 1 else 1, "TILE_H": chosen.tile_h, "TILE_W": chosen.tile_w,
        "ACTIVATION": activation, "SUMS": sums is not None,
        "VECTOR": chosen.vector, "UNIT": unit, "WIDE": threads >= 2**31 - chosen.block, "BLOCK": chosen.block,
    }  # fmt: skip
    return [
        Launch(
            depthwise_conv_kernel, (-(-threads // chosen.block), 1, 1), arguments, constants, warps=chosen.block // 32
        )
    ]
