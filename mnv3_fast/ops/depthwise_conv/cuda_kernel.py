"""Depthwise convolution by its CUDA kernel (``csrc/ops/depthwise_conv/cuda.cu``): 3x3 and 5x5, strides 1 and 2.

The weights are packed as for the Triton kernel. Not registered with torch's dispatcher: who calls it has chosen it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from mnv3_fast.gpu import cuda_library
from mnv3_fast.ops.elements import resolve_window

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Arguments(ctypes.Structure):
    """``mnv3_cuda_depthwise_conv_arguments`` of ``csrc/ops/depthwise_conv/cuda.h``."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("input", "weight", "bias", "output", "sums")],
        ("images", ctypes.c_int64),
        *[(name, ctypes.c_int32) for name in ("height", "width", "out_height", "out_width", "channels")],
        *[(name, ctypes.c_int32) for name in ("kernel", "stride", "pad_left", "pad_top", "dtype", "activation")],
    )


def is_known(kernel: Sequence[int], window: Sequence[int]) -> bool:
    """Whether the kernel computes a window (stride h, w, padding left, right, top, bottom, dilation h, w)."""
    return tuple(kernel) in ((3, 3), (5, 5)) and tuple(window[:2]) in ((1, 1), (2, 2)) and tuple(window[6:]) == (1, 1)


def arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    kernel: Sequence[int],
    window: Sequence[int],
    activation: int,
    sums: Tensor | None = None,
) -> Arguments:
    """What the library is given.

    Raises:
        ValueError: for a window that :func:`is_known` does not know.
    """
    if not is_known(kernel, window):
        raise ValueError(f"depthwise_conv: the CUDA kernel has no {tuple(kernel)} with window {tuple(window)}")
    window = resolve_window(input.shape[2:], kernel, window)
    n, channels, height, width = input.shape
    return Arguments(
        *[tensor.data_ptr() for tensor in (input, weight, bias, output)], None if sums is None else sums.data_ptr(),
        n, height, width, output.shape[2], output.shape[3], channels,
        kernel[0], window[0], window[2], window[4], DTYPES[input.dtype], activation,
    )  # fmt: skip


def parts(of: Arguments) -> int:
    """How many partial sums an image has; sums are float32 [N, parts, C]."""
    found = cuda_library.load().mnv3_cuda_depthwise_conv_parts(ctypes.byref(of))
    if found < 0:
        cuda_library.check("depthwise_conv", cuda_library.UNKNOWN)
    return found


def run(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    kernel: Sequence[int],
    window: Sequence[int],
    activation: int,
    mean: Tensor | None = None,
) -> None:
    """Start the kernel on the current stream of the input's device.

    Args:
        input: [N, C, H, W] float32, float16 or bfloat16, strides (H*W*C, 1, W*C, C).
        weight: [kh * kw, C] (``mnv3_fast.gpu.packing.pack_depthwise``), of the input's dtype.
        bias: [C] float32.
        output: [N, C, OH, OW] of the input's dtype, strides as the input's.
        kernel: kh, kw.
        window: stride h, w, padding left, right, top, bottom, dilation h, w.
        activation: 0 none, 1 relu, 2 hardswish.
        mean: [N, C] of the input's dtype, which receives the means of the outputs as they were before they were
            rounded: sums by parts of the map from the same pass, added up in order by a second launch.

    Raises:
        ValueError: as :func:`arguments`.
        RuntimeError: without the library, and with CUDA's words where it refuses the launch.
    """
    library, sums = cuda_library.load(), None
    given = arguments(input, weight, bias, output, kernel, window, activation)
    with torch.cuda.device(input.device):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if mean is not None:
            sums = input.new_empty(input.shape[0], parts(given), input.shape[1], dtype=torch.float32)
            given.sums = sums.data_ptr()
        cuda_library.check("depthwise_conv", library.mnv3_cuda_depthwise_conv(ctypes.byref(given), stream))
        if mean is not None and sums is not None:
            sizes = [ctypes.c_int64(size) for size in (*sums.shape, output.shape[2] * output.shape[3])]
            places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (sums, mean)]
            status = library.mnv3_cuda_channel_means(*places, *sizes, ctypes.c_int32(given.dtype), stream)
            cuda_library.check("depthwise_conv", status)
