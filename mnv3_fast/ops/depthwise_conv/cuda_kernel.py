"""Depthwise convolution by its CUDA kernel (``csrc/ops/depthwise_conv/cuda.cu``): 3x3 and 5x5, strides 1 and 2.

Weights are packed as for the Triton kernel, and sums are added up by the same kernels. The geometry of a launch is
computed here, so that launches can be made and counted where the library is not; C checks it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnv3_fast.gpu.cuda_library import CudaKernel
from mnv3_fast.gpu.launch import CudaLaunch, is_aligned
from mnv3_fast.ops.elements import convolved_size

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
THREADS = 128
"""Of a block at most: with 255 registers two such blocks fit on a multiprocessor at least."""
ACROSS = 32
"""Of them side by side along the channels at most."""
MOST_BLOCKS = 65535
MOST = 2**30 - 1
"""Rows, columns, channels, pixels of a map at most: C counts in 32 bits."""


class Arguments(ctypes.Structure):
    """``mnv3_cuda_depthwise_conv_arguments`` of ``csrc/ops/depthwise_conv/cuda.h``."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("input", "weight", "bias", "output", "sums")],
        *[(name, ctypes.c_int32) for name in ("height", "width", "out_height", "out_width", "channels")],
        *[(name, ctypes.c_int32) for name in ("kernel", "stride", "pad_left", "pad_top", "dtype", "activation")],
        *[(name, ctypes.c_int32) for name in ("tiles_h", "tiles_w", "across", "down")],
        *[(name, ctypes.c_int32) for name in ("grid_x", "grid_y", "grid_z", "shared")],
    )


KERNEL = CudaKernel("depthwise_conv", "mnv3_cuda_depthwise_conv", Arguments)


@dataclass(frozen=True)
class Geometry:
    """How a map is divided: tiles of ``tile_h`` x ``tile_w`` pixels of a word of 128 bits of channels, one a thread.

    Attributes:
        tiles_h, tiles_w: tiles of a map.
        across, down: threads of a block along the channels and along the tiles.
        parts, channel_blocks: blocks along the tiles and along the channels.
    """

    tile_h: int
    tile_w: int
    tiles_h: int
    tiles_w: int
    across: int
    down: int
    parts: int
    channel_blocks: int


def geometry(output: Tensor, kernel: Sequence[int], window: Sequence[int]) -> Geometry:
    """How a launch divides an output [N, C, OH, OW]. Blocks of a launch are as equal as can be."""
    tile_h, tile_w = (2 if window[0] == 1 else 1), 7  # maps of MobileNetV3 are 7 x 2^n wide
    tiles_h, tiles_w = -(-output.shape[2] // tile_h), -(-output.shape[3] // tile_w)
    words = -(-output.shape[1] // vector(output.dtype))
    across = -(-words // -(-words // ACROSS))
    parts = -(-tiles_h * tiles_w // (THREADS // across))
    down = -(-tiles_h * tiles_w // parts)
    return Geometry(tile_h, tile_w, tiles_h, tiles_w, across, down, parts, -(-words // across))


def vector(dtype: torch.dtype) -> int:
    """Channels of a word of 128 bits."""
    return 16 // dtype.itemsize


def is_known(shape: Sequence[int], kernel: Sequence[int], window: Sequence[int]) -> bool:
    """Whether the kernel computes a layer, in each dtype and with each activation.

    Args:
        shape: of the input, N, C, H, W.
        kernel: h, w.
        window: stride h, w, padding left, right, top, bottom, dilation h, w, as numbers.
    """
    window, size = tuple(window), convolved_size(shape[2:], kernel, window)
    shaped = tuple(kernel) in ((3, 3), (5, 5)) and window[:2] in ((1, 1), (2, 2)) and window[6:] == (1, 1)
    sizes = (*shape[1:], *window[2:6], size[0] * size[1])
    return shaped and shape[0] <= MOST_BLOCKS and min(size) >= 1 and all(0 <= each <= MOST for each in sizes)


def sums_shape(output: Tensor, kernel: Sequence[int], window: Sequence[int]) -> tuple[int, int, int]:
    """The shape [N, parts, C] of the partial sums of an output [N, C, OH, OW]."""
    return output.shape[0], geometry(output, kernel, window).parts, output.shape[1]


def launches(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    kernel: Sequence[int],
    window: Sequence[int],
    activation: int,
    sums: Tensor | None = None,
) -> list[CudaLaunch]:
    """The launch that computes one layer; none for an empty batch.

    Args:
        input: [N, C, H, W] float32, float16 or bfloat16, strides (H*W*C, 1, W*C, C).
        weight: [kh * kw, C] (``mnv3_fast.gpu.packing.pack_depthwise``), of the input's dtype.
        bias: [C] float32.
        output: [N, C, OH, OW] of the input's dtype, strides as the input's.
        kernel: kh, kw.
        window: stride h, w, padding left, right, top, bottom, dilation h, w, as numbers.
        activation: 0 none, 1 relu, 2 hardswish, 3 relu6.
        sums: float32 of the shape :func:`sums_shape`, which receives the sums of the outputs of each block's tiles as
            they were before they were rounded; their sum over dimension 1 by OH * OW is the channel mean.

    Raises:
        ValueError: for a layer that :func:`is_known` does not know.
    """
    if not is_known(input.shape, kernel, window):
        raise ValueError(
            f"depthwise_conv: the CUDA kernel has 3x3 and 5x5 with stride 1 or 2, no dilation and at most "
            f"{MOST_BLOCKS} images, got {tuple(kernel)} with window {tuple(window)} for {list(input.shape)}"
        )
    n, channels, height, width = input.shape
    if n == 0 or channels == 0:
        return []
    g = geometry(output, kernel, window)
    arguments = {
        "input": input, "weight": weight, "bias": bias, "output": output, "sums": sums,
        "height": height, "width": width, "out_height": output.shape[2], "out_width": output.shape[3],
        "channels": channels, "kernel": kernel[0], "stride": window[0], "pad_left": window[2], "pad_top": window[4],
        "dtype": DTYPES[input.dtype], "activation": activation,
        "tiles_h": g.tiles_h, "tiles_w": g.tiles_w, "across": g.across, "down": g.down,
    }  # fmt: skip
    words = channels % vector(input.dtype) == 0 and all(map(is_aligned, (input, weight, bias, output)))
    constants = {
        "DTYPE": str(input.dtype).removeprefix("torch."), "KERNEL": kernel[0], "STRIDE": window[0],
        "ACTIVATION": activation, "WORDS": words, "SUMS": sums is not None, "TILE_H": g.tile_h, "TILE_W": g.tile_w,
    }  # fmt: skip
    threads = g.across * g.down
    shared = kernel[0] ** 2 * ACROSS * vector(input.dtype) * 4  # taps in float32
    grid = (g.parts, g.channel_blocks, n)
    return [CudaLaunch(KERNEL, grid, arguments, threads, shared, constants)]
