"""1x1 convolution for GPUs: act(bias + sum_k (input[m, k] gate[n, k]) weight[o, k]) + residual, NHWC.

A product of matrices of pixels x inputs and inputs x outputs, in tiles, on tensor cores for 16 bit; the gate multiplies
the inputs on their way in, in fp32, the rest happens to the accumulators before they are stored. Bound by memory in all
but the late layers. With a gate a tile belongs to one image, so that it needs one row of gates. See README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mnv3_fast.gpu.elements import activate
from mnv3_fast.gpu.launch import Launch
from mnv3_fast.gpu.precision import dot_precision

INTS = ("pixels", "tiles_m", "tiles_n", "inputs", "outputs", "has_residual")


@triton.jit(do_not_specialize=INTS)
def pointwise_conv_kernel(
    input,  # [images, pixels, inputs]
    weight,  # [outputs, inputs]
    bias,  # [outputs], fp32
    gate,  # [images, inputs], if GATE
    residual,  # [images, pixels, outputs], if has_residual
    output,  # [images, pixels, outputs]
    pixels,  # of an image; of the whole batch, as one image, without a gate
    tiles_m,  # of an image
    tiles_n,
    inputs,  # in units of UNIT_K, outputs in units of UNIT_N
    outputs,
    has_residual,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    UNIT_K: tl.constexpr,  # what divides the inputs, as the compiler has to know for wide loads: 16 bytes' worth, or 1
    UNIT_N: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    PRECISION: tl.constexpr,  # of fp32 products: "ieee" or "tf32"
    UPCAST: tl.constexpr,  # multiplies 16-bit operands as fp32, for where tensor cores are imitated wrongly
):
    inputs = inputs * UNIT_K
    outputs = outputs * UNIT_N
    row_tile = tl.program_id(0) // tiles_n
    first_column = (tl.program_id(0) - row_tile * tiles_n) * TILE_N
    image = row_tile // tiles_m
    # From here on wide: a map may hold more than 2^31 pixels.
    start = (row_tile - image * tiles_m).to(tl.int64) * TILE_M
    rows = tl.arange(0, TILE_M)
    columns = first_column + tl.arange(0, TILE_N)
    row_inside = rows < tl.minimum(pixels - start, TILE_M).to(tl.int32)
    column_inside = columns < outputs
    start += image.to(tl.int64) * pixels
    a_rows = input + start * inputs + rows[:, None] * inputs
    b_rows = weight + columns[None, :].to(tl.int64) * inputs
    gates = gate + image.to(tl.int64) * inputs

    acc = tl.zeros((TILE_M, TILE_N), tl.float32)
    for first in range(0, inputs, TILE_K):
        k = first + tl.arange(0, TILE_K)
        inside = k < inputs
        a = tl.load(a_rows + k[None, :], mask=row_inside[:, None] & inside[None, :], other=0.0)
        b = tl.load(b_rows + k[:, None], mask=inside[:, None] & column_inside[None, :], other=0.0)
        if GATE:
            factor = tl.load(gates + k, mask=inside, other=0.0).to(tl.float32)
            a = (a.to(tl.float32) * factor[None, :]).to(input.dtype.element_ty)
        if UPCAST:
            acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
        else:
            acc = tl.dot(a, b, acc, input_precision=PRECISION)

    acc += tl.load(bias + columns, mask=column_inside, other=0.0)[None, :]
    acc = activate(acc, ACTIVATION)
    mask = row_inside[:, None] & column_inside[None, :]
    offset = rows[:, None] * outputs + columns[None, :]
    # A flag and no constant: without a residual no column of it is inside, and one kernel serves both.
    residual_mask = mask & (columns < outputs * has_residual)[None, :]
    acc += tl.load(residual + start * outputs + offset, mask=residual_mask, other=0.0).to(tl.float32)
    tl.store(output + start * outputs + offset, acc.to(output.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class Configuration:
    """Tile of a program, and its warps and stages of loads in flight."""

    tile_m: int
    tile_n: int
    tile_k: int
    warps: int
    stages: int


MANY = 128
"""Large tiles are for where there are this many of them: one for each multiprocessor of a large GPU."""


def configuration(dtype: torch.dtype, images: int, pixels: int, inputs: int, outputs: int) -> Configuration:
    """One of three tiles, since each is compiled: narrow, small and large.

    Large reads inputs and weights the fewest times. Small is for few pixels, and for layers with few outputs and fewer
    inputs, where it computes less that is thrown away.
    """
    narrow = outputs <= 32
    if dtype == torch.float32:
        return Configuration(64, 32 if narrow else 64, 16, 4, 2)
    if narrow:
        return Configuration(128, 32, 32, 4, 3)
    few = images * -(-pixels // 128) * -(-outputs // 128) < MANY
    if few or pixels <= 64 or outputs <= 64 or (outputs <= 128 and inputs * 2 <= outputs):
        return Configuration(64, 64, 32, 4, 3)
    return Configuration(128, 128, 32, 8, 3)


def launches(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    activation: int,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    upcast: bool = False,
) -> list[Launch]:
    """The launch that computes one layer; none for an empty batch.

    Args:
        input: [N, K, H, W] with strides (H*W*K, 1, W*K, K), or [N, K] for a fully connected layer.
        weight: [O, K] (``mnv3_fast.gpu.packing.pack_pointwise``), of the input's dtype.
        bias: [O] float32.
        output: [N, O, H, W] or [N, O] of the input's dtype, strides as the input's.
        activation: 0 none, 1 relu, 2 hardswish, 3 relu6.
        gate: [N, K] of any float dtype; multiplies the input in fp32 and is rounded to the input's dtype.
        residual: added after the activation; as the output.
        upcast: multiply 16-bit operands in fp32, without tensor cores.
    """
    images, inputs = input.shape[:2]
    outputs = weight.shape[0]
    pixels = 1
    for size in input.shape[2:]:
        pixels *= size
    if images * pixels * outputs == 0:
        return []
    if gate is None:
        images, pixels = 1, images * pixels
    chosen = configuration(input.dtype, images, pixels, inputs, outputs)
    tiles_m, tiles_n = -(-pixels // chosen.tile_m), -(-outputs // chosen.tile_n)
    vector = 16 // input.element_size()
    unit_k = vector if inputs % vector == 0 else 1
    unit_n = vector if outputs % vector == 0 else 1
    arguments = {
        "input": input, "weight": weight, "bias": bias, "gate": bias if gate is None else gate,
        "residual": output if residual is None else residual, "output": output,
        "pixels": pixels, "tiles_m": tiles_m, "tiles_n": tiles_n,
        "inputs": inputs // unit_k, "outputs": outputs // unit_n, "has_residual": int(residual is not None),
    }  # fmt: skip
    constants = {
        "ACTIVATION": activation, "GATE": gate is not None, "UNIT_K": unit_k, "UNIT_N": unit_n,
        "TILE_M": chosen.tile_m, "TILE_N": chosen.tile_n, "TILE_K": chosen.tile_k,
        "PRECISION": dot_precision(weight.dtype), "UPCAST": upcast,
    }  # fmt: skip
    grid = (images * tiles_m * tiles_n, 1, 1)
    return [Launch(pointwise_conv_kernel, grid, arguments, constants, chosen.warps, chosen.stages)]
