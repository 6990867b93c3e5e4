"""Squeeze-excite as a whole for GPUs, where no convolution beside it takes its parts: sums, gate, product.

``channel_sums`` is the global pool of a network, too. Bound by memory.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mnv3_fast.gpu.launch import Launch
from mnv3_fast.ops.squeeze_excite_gate import triton_kernel as squeeze_excite_gate

TILE_P, TILE_C = 64, 64
"""Pixels and channels of a program's tile."""
WARPS = 8
LEAST_PART = 1024
"""Pixels that one program adds up before another one helps it."""


@triton.jit
def _offsets(first, image, pixels, channels, TILE_P: tl.constexpr, TILE_C: tl.constexpr):
    """Offsets of a tile of pixels and channels and what of it is inside; wide, for maps of more than 2^31 elements."""
    pixel = first + tl.arange(0, TILE_P)
    channel = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    start = image.to(tl.int64) * pixels + first
    return start * channels + tl.arange(0, TILE_P)[:, None] * channels + channel[None, :], inside


@triton.jit(do_not_specialize=("pixels", "channels", "parts", "part"))
def channel_sums_kernel(
    input,  # [N, pixels, channels]
    sums,  # [N, parts, channels]
    pixels,
    channels,  # in units of UNIT
    parts,
    part,  # pixels of a part, a multiple of TILE_P
    factor,
    UNIT: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_C: tl.constexpr,
):
    channels = channels * UNIT
    image = tl.program_id(0) // parts
    first = (tl.program_id(0) - image * parts) * part
    acc = tl.zeros((TILE_P, TILE_C), tl.float32)
    for start in range(first, tl.minimum(first + part, pixels), TILE_P):
        offsets, inside = _offsets(start, image, pixels, channels, TILE_P, TILE_C)
        acc += tl.load(input + offsets, mask=inside, other=0.0).to(tl.float32)
    channel = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    total = tl.sum(acc, axis=0) * factor
    place = sums + tl.program_id(0).to(tl.int64) * channels + channel
    tl.store(place, total.to(sums.dtype.element_ty), mask=channel < channels)


@triton.jit(do_not_specialize=("pixels", "channels", "tiles"))
def scale_kernel(
    input,  # [N, pixels, channels]
    gates,  # [N, channels]
    output,  # as the input
    pixels,
    channels,  # in units of UNIT
    tiles,  # of an image's pixels
    UNIT: tl.constexpr,
    TILE_P: tl.constexpr,
    TILE_C: tl.constexpr,
):
    channels = channels * UNIT
    image = tl.program_id(0) // tiles
    start = (tl.program_id(0) - image * tiles) * TILE_P
    offsets, inside = _offsets(start, image, pixels, channels, TILE_P, TILE_C)
    channel = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    gate = tl.load(gates + image.to(tl.int64) * channels + channel, mask=channel < channels, other=0.0)
    value = tl.load(input + offsets, mask=inside, other=0.0).to(tl.float32) * gate.to(tl.float32)[None, :]
    tl.store(output + offsets, value.to(output.dtype.element_ty), mask=inside)


def sums_shape(input: Tensor) -> tuple[int, int, int]:
    """The shape [N, parts, C] of the sums that :func:`launches` works with, for an input [N, C, H, W]."""
    n, channels, height, width = input.shape
    return n, -(-height * width // LEAST_PART), channels


def channel_sums(input: Tensor, sums: Tensor, factor: float = 1.0) -> list[Launch]:
    """Sums over parts of each channel's pixels, times a factor: means, where ``sums`` has one part; none for no batch.

    Args:
        input: [N, C, H, W], strides (H*W*C, 1, W*C, C).
        sums: [N, parts, C], dense, of any float dtype.
    """
    n, channels, height, width = input.shape
    parts = sums.shape[1]
    if n * channels == 0:
        return []
    part = -(-height * width // (parts * TILE_P)) * TILE_P
    arguments = {
        "input": input, "sums": sums, "pixels": height * width, "channels": channels // _unit(input),
        "parts": parts, "part": part, "factor": float(factor),
    }  # fmt: skip
    return [Launch(channel_sums_kernel, (n * parts, -(-channels // TILE_C), 1), arguments, _constants(input), WARPS)]


def scale(input: Tensor, gates: Tensor, output: Tensor) -> list[Launch]:
    """output = input * gate, the product in fp32; all as :func:`launches`."""
    n, channels, height, width = input.shape
    if n * channels == 0:
        return []
    tiles = -(-height * width // TILE_P)
    arguments = {
        "input": input, "gates": gates, "output": output,
        "pixels": height * width, "channels": channels // _unit(input), "tiles": tiles,
    }  # fmt: skip
    return [Launch(scale_kernel, (n * tiles, -(-channels // TILE_C), 1), arguments, _constants(input), WARPS)]


def launches(
    input: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    output: Tensor,
    sums: Tensor,
    gates: Tensor,
    workspace: Tensor,
    activation: int,
    gate: int,
    slope: float,
    upcast: bool = False,
) -> list[Launch]:
    """Three launches: sums, gates, product; none for an empty batch.

    Args:
        input, output: [N, C, H, W] of one dtype, strides (H*W*C, 1, W*C, C).
        sums: float32 of the shape :func:`sums_shape`.
        gates: [N, C] float32.
        others: as of ``squeeze_excite_gate``'s launches.
    """
    layers = fc1_weight, fc1_bias, fc2_weight, fc2_bias, gates, workspace, activation, gate, slope, upcast
    count = input.shape[2] * input.shape[3]
    return [
        *channel_sums(input, sums),
        *squeeze_excite_gate.launches(sums, count, *layers),
        *scale(input, gates, output),
    ]


def _unit(input: Tensor) -> int:
    vector = 16 // input.element_size()
    return vector if input.shape[1] % vector == 0 else 1


def _constants(input: Tensor) -> dict[str, int]:
    return {"UNIT": _unit(input), "TILE_P": TILE_P, "TILE_C": TILE_C}
