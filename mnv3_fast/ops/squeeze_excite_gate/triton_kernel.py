"""The gate of squeeze-excite for GPUs, from sums of the channels: gate(fc2(act(fc1(mean)))), in one launch.

A program serves IMAGES images, so that it reads the weights once for all of them, and does its three steps one behind
the other: means, hidden layer, gates. Between them the results of a step go through memory that no other program
touches, behind a barrier of the program. Bound by latency. See README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mnv3_fast.gpu.elements import activate, apply_gate
from mnv3_fast.gpu.launch import Launch

INTS = ("images", "parts", "channels", "squeeze")


@triton.jit
def _write_means(sums, means, rows, row_inside, parts, channels, factor, PARTS: tl.constexpr, CHANNELS: tl.constexpr):
    """means[row, channel] = factor * sum over the parts, PARTS at a time and in order."""
    part = tl.arange(0, PARTS)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        inside = row_inside[:, None] & (channel < channels)[None, :]
        acc = tl.zeros((rows.shape[0], CHANNELS), tl.float32)
        for first_part in range(0, parts, PARTS):
            at = rows[:, None] * parts + first_part + part[None, :]
            mask = inside[:, None, :] & (first_part + part < parts)[None, :, None]
            block = tl.load(sums + at[:, :, None] * channels + channel[None, None, :], mask=mask, other=0.0)
            acc += tl.sum(block.to(tl.float32), axis=1)
        place = means + rows[:, None] * channels + channel[None, :]
        tl.store(place, (acc * factor).to(means.dtype.element_ty), mask=inside)


@triton.jit
def _linear(
    input, weight, bias, output, rows, row_inside, inputs, outputs, slope,
    ACTIVATION: tl.constexpr, GATE: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """output[row, o] = bias[o] + sum_k input[row, k] weight[o, k], activated, or a gate where GATE >= 0."""
    for first in range(0, outputs, TILE_N):
        column = first + tl.arange(0, TILE_N)
        column_inside = column < outputs
        acc = tl.zeros((rows.shape[0], TILE_N), tl.float32)
        for first_k in range(0, inputs, TILE_K):
            k = first_k + tl.arange(0, TILE_K)
            inside = k < inputs
            a = tl.load(
                input + rows[:, None] * inputs + k[None, :], mask=row_inside[:, None] & inside[None, :], other=0.0
            )
            b = tl.load(
                weight + column[None, :] * inputs + k[:, None], mask=inside[:, None] & column_inside[None, :], other=0.0
            )
            if UPCAST:
                acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
            else:
                acc = tl.dot(a, b, acc, input_precision="ieee")
        acc += tl.load(bias + column, mask=column_inside, other=0.0)[None, :]
        acc = apply_gate(acc, slope, GATE) if GATE >= 0 else activate(acc, ACTIVATION)
        mask = row_inside[:, None] & column_inside[None, :]
        tl.store(output + rows[:, None] * outputs + column[None, :], acc.to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=INTS)
def squeeze_excite_gate_kernel(
    sums,  # [images, parts, channels]
    fc1_weight,  # [squeeze, channels]
    fc1_bias,  # [squeeze], fp32
    fc2_weight,  # [channels, squeeze]
    fc2_bias,  # [channels], fp32
    means,  # [images, channels], of the weights' dtype: work space
    hidden,  # [images, squeeze], work space
    gates,  # [images, channels]
    images,
    parts,
    channels,  # in units of UNIT_C, squeeze in units of UNIT_S
    squeeze,
    factor,  # makes a sum a mean
    slope,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    UNIT_C: tl.constexpr,
    UNIT_S: tl.constexpr,
    IMAGES: tl.constexpr,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    UPCAST: tl.constexpr,  # multiplies 16-bit operands as fp32, for where tensor cores are imitated wrongly
):
    channels = channels * UNIT_C
    squeeze = squeeze * UNIT_S
    rows = tl.program_id(0).to(tl.int64) * IMAGES + tl.arange(0, IMAGES)
    inside = rows < images
    _write_means(sums, means, rows, inside, parts, channels, factor, PARTS, CHANNELS)
    tl.debug_barrier()
    _linear(
        means, fc1_weight, fc1_bias, hidden, rows, inside, channels, squeeze, slope,
        ACTIVATION, -1, TILE_N, TILE_K, UPCAST,
    )  # fmt: skip
    tl.debug_barrier()
    _linear(
        hidden, fc2_weight, fc2_bias, gates, rows, inside, squeeze, channels, slope,
        0, GATE, TILE_N, TILE_K, UPCAST,
    )  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """Images of a program; parts and channels that it sums at a time; tile of the layers; warps and stages."""

    images: int
    parts: int
    channels: int
    tile_n: int
    tile_k: int
    warps: int
    stages: int


def configuration(dtype: torch.dtype) -> Configuration:
    """16 images, the least that tensor cores take; one compilation serves every layer of a network."""
    if dtype == torch.float32:
        return Configuration(16, 4, 64, 64, 32, 8, 2)
    return Configuration(16, 4, 64, 128, 64, 8, 2)


def workspace_size(images: int, channels: int, squeeze: int) -> int:
    """Elements of the weights' dtype that the launch writes its means and hidden layer to."""
    return _means_size(images, channels) + images * squeeze


def _means_size(images: int, channels: int) -> int:
    return -(-images * channels // 16) * 16


def launches(
    sums: Tensor,
    count: int,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    gates: Tensor,
    workspace: Tensor,
    activation: int,
    gate: int,
    slope: float,
    upcast: bool = False,
) -> list[Launch]:
    """The launch that computes the gates; none for an empty batch.

    Args:
        sums: [N, parts, C], dense, of any float dtype; their sum over the parts by ``count`` is the mean.
        count: pixels of a map, or 1 where ``sums`` are means.
        fc1_weight, fc2_weight: [S, C] and [C, S] (``mnv3_fast.gpu.packing.pack_pointwise``), of one dtype.
        fc1_bias, fc2_bias: [S] and [C] float32.
        gates: [N, C], dense, of any float dtype.
        workspace: at least ``workspace_size(N, C, S)`` elements of the weights' dtype.
        activation: of the hidden layer: 0 none, 1 relu, 2 hardswish, 3 relu6.
        gate: 0 hardsigmoid with this slope, 1 sigmoid.
        upcast: multiply 16-bit operands in fp32, without tensor cores.
    """
    images, parts, channels = sums.shape
    squeeze = fc1_weight.shape[0]
    if images * channels == 0:
        return []
    chosen = configuration(fc1_weight.dtype)
    vector = 16 // fc1_weight.element_size()
    unit_c = vector if channels % vector == 0 else 1
    unit_s = vector if squeeze % vector == 0 else 1
    arguments = {
        "sums": sums, "fc1_weight": fc1_weight, "fc1_bias": fc1_bias, "fc2_weight": fc2_weight, "fc2_bias": fc2_bias,
        "means": workspace, "hidden": workspace[_means_size(images, channels) :], "gates": gates,
        "images": images, "parts": parts, "channels": channels // unit_c, "squeeze": squeeze // unit_s,
        "factor": 1.0 / count, "slope": float(slope),
    }  # fmt: skip
    constants = {
        "ACTIVATION": activation, "GATE": gate, "UNIT_C": unit_c, "UNIT_S": unit_s,
        "IMAGES": chosen.images, "PARTS": chosen.parts, "CHANNELS": chosen.channels,
        "TILE_N": chosen.tile_n, "TILE_K": chosen.tile_k, "UPCAST": upcast,
    }  # fmt: skip
    grid = (-(-images // chosen.images), 1, 1)
    return [Launch(squeeze_excite_gate_kernel, grid, arguments, constants, chosen.warps, chosen.stages)]
