"""The second launch of a block with squeeze-excite, by ``csrc/ops/inverted_residual/gated_project.cu``.

It computes ``act(bias + weight (gate * hidden)) + residual`` where the gate still lacks the sum of its first layer's
terms, that layer's bias and activation, and its second layer. The geometry of a launch is computed here, so that
launches can be made and counted where the library is not; C checks it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.cuda_library import CudaKernel
from mnv3_fast.gpu.fragments import COLUMNS, pack_fragments
from mnv3_fast.gpu.launch import CudaLaunch, aligned
from mnv3_fast.gpu.packing import Block

DTYPES = {torch.float16: 1, torch.bfloat16: 2}
THREADS = 256
"""Of a block at most, and MOST_SHARED bytes of shared memory: what sm_86, 89 and 120 give."""
MOST_SHARED = 99 << 10
MOST_BLOCKS, MOST_CHANNELS, MOST_PIXELS = 65535, 1 << 13, 1 << 16
GROUPS = (1, 2)
"""Times 16 outputs that a warp may have: each is compiled."""
MULTIPROCESSORS = 82
"""Of the GPU that tiles are chosen for, the smallest of five from 82 to 170: a block too many doubles a launch's time,
a larger GPU loses a few percent. A number for all, so that results depend on no device."""
SCHEDULERS, BYTES = 4, 64
"""Warp instructions that a multiprocessor issues in a cycle, and bytes that it reads from L2."""
GATE_STEP, PROJECT_STEP = 16, 64
"""Cycles that a warp takes for 16 squeezed channels of 16 gates, and for 16 channels of its outputs, most of them
waiting: a product on tensor cores takes about 32 until the next can add to it, and two sums are under way."""
TERMS, WAIT = 8, 300
"""Terms that a thread has on their way at a time, and the cycles until they are there."""
EXCHANGE = 1000
"""Cycles for the fence, the atomic and the wait where the block that comes last adds up slabs."""


class Arguments(ctypes.Structure):
    """``mnv3_cuda_gated_project_arguments`` of ``csrc/ops/inverted_residual/gated_project.h``."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("hidden", "parts", "fc1_bias", "fc2_weight", "fc2_bias", "weight")],
        *[(name, ctypes.c_void_p) for name in ("bias", "residual", "output", "partials", "arrivals")],
        ("slope", ctypes.c_float),
        *[(name, ctypes.c_int32) for name in ("pixels", "channels", "squeeze", "outputs", "count", "dtype")],
        *[(name, ctypes.c_int32) for name in ("squeeze_activation", "activation", "gate")],
        *[(name, ctypes.c_int32) for name in ("row_warps", "column_warps", "groups", "slab_warps", "slab")],
        *[(name, ctypes.c_int32) for name in ("grid_x", "grid_y", "grid_z", "threads", "shared")],
    )


KERNEL = CudaKernel("gated_project", "mnv3_cuda_gated_project", Arguments)


@dataclass(frozen=True)
class Packed:
    """What the launch needs of a block: weights in fragments, fp32 biases, sizes and codes."""

    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor
    weight: Tensor
    bias: Tensor
    channels: int
    squeeze: int
    outputs: int
    squeeze_activation: int
    gate: int
    slope: float
    activation: int


@dataclass(frozen=True)
class Work:
    """The sizes of a launch: images, pixels of a map, channels, squeezed and output channels, terms of the gate."""

    images: int
    pixels: int
    channels: int
    squeeze: int
    outputs: int
    count: int


@dataclass(frozen=True)
class Geometry:
    """How a launch divides its work.

    Attributes:
        row_warps, column_warps: warps of a block, along pixels and outputs; each has 16 pixels.
        groups: times 16 outputs that a warp has.
        slab_warps: warps that share the channels of the same pixels and outputs.
        slab: channels of a block.
        tiles: blocks along pixels and outputs.
        slabs: blocks along the channels.
        shared: bytes of shared memory of a block.
    """

    row_warps: int
    column_warps: int
    groups: int
    slab_warps: int
    slab: int
    tiles: int
    slabs: int
    shared: int

    @property
    def rows(self) -> int:
        """Pixels of a tile."""
        return 16 * self.row_warps

    @property
    def columns(self) -> int:
        """Outputs of a tile."""
        return COLUMNS * self.column_warps * self.groups

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.row_warps * self.column_warps * self.slab_warps


def is_known(dtype: torch.dtype, images: int, pixels: int, channels: int, squeeze: int, outputs: int) -> bool:
    """Whether the kernel computes a block with squeeze-excite.

    Args:
        dtype: of activations and weights.
        images, pixels: of the depthwise layer's output.
        channels: of it; squeeze: of the gate's first layer; outputs: of the block.
    """
    sizes = channels, squeeze, outputs
    known = dtype in DTYPES and all(size % 8 == 0 and 8 <= size <= MOST_CHANNELS for size in sizes)
    return known and images <= MOST_BLOCKS and 1 <= pixels <= MOST_PIXELS and squeeze <= 4 * THREADS


def pack(block: Block) -> Packed:
    """The weights of a block with squeeze-excite; its first layer is the first launch's."""
    squeeze, project = block.squeeze_excite, block.project
    assert squeeze is not None
    fc1, fc1_bias, fc2, fc2_bias = squeeze.layers
    return Packed(
        aligned(fc1_bias), pack_left(fc2), aligned(fc2_bias), pack_outputs(project.weight), aligned(project.bias),
        fc2.shape[0], fc1.shape[0], project.channels, squeeze.activation, squeeze.gate, squeeze.slope,
        project.activation,
    )  # fmt: skip


def pack_left(weight: Tensor) -> Tensor:
    """A weight [O, I] in fragments of the left factor: of the four registers of a right one the middle two change."""
    fragments = pack_fragments(weight, weight.dtype)
    return fragments.unflatten(-1, (2, 2, 2)).transpose(-3, -2).flatten(-3).contiguous()


def pack_outputs(weight: Tensor) -> Tensor:
    """A weight [O, I] in fragments, its outputs so that a lane has four neighbouring ones of 16.

    Of 16 outputs a lane 4 g + t holds the columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of a product
    (``csrc/cuda/matrix.h``); these become the outputs 4 t to 4 t + 3.
    """
    outputs, inputs = weight.shape
    padded = weight.new_zeros(-(-outputs // COLUMNS) * COLUMNS, inputs)
    padded[:outputs] = weight
    ordered = padded.view(-1, 4, 2, 2, inputs).transpose(1, 2)  # 4 t + 2 upper + odd -> 8 upper + 2 t + odd
    return pack_fragments(ordered.reshape(-1, inputs), weight.dtype)


def shared_bytes(warps: tuple[int, int, int, int], slab: int, squeeze: int, count: int) -> int:
    """Of a block, as ``csrc/ops/inverted_residual/gated_project_tile.h`` lays it out.

    Args:
        warps: row_warps, column_warps, groups, slab_warps.
        slab, squeeze, count: channels of a block, squeezed channels, terms.
    """
    rows, columns, groups, parts = warps
    tiles, steps, all_warps = slab // 16, -(-squeeze // 16), rows * columns * parts
    room = 1024 * all_warps * groups if parts > 1 else 0
    terms = min(count, all_warps * 128 // squeeze)
    shares = max(1, all_warps // tiles)
    fragments = max(512 * tiles * steps, room) + 512 * tiles * columns * groups
    biases, hidden, sums = 4 * (squeeze + slab), 32 * rows * (slab + 8), 4 * terms * squeeze
    return biases + fragments + hidden + sums + 32 * steps + 4 * (shares + 1) * slab + 16


@functools.cache
def geometry(work: Work) -> Geometry:
    """The division of a launch that takes the fewest cycles by :func:`cycles`."""
    return min(_geometries(work), key=lambda each: cycles(each, work))


def _geometries(work: Work) -> Iterator[Geometry]:
    """Those that fit, with no more warps along pixels and outputs and no more slabs than there is work for."""
    down, across, along = -(-work.pixels // 16), -(-work.outputs // COLUMNS), -(-work.channels // 16)
    slabs = sorted({-(-along // -(-along // each)) for each in range(1, along + 1)})
    most = THREADS // 32
    for rows, columns, parts in itertools.product(range(1, most + 1), repeat=3):
        if rows * columns * parts > most or rows > down or columns > across:
            continue
        for groups, each in itertools.product(GROUPS, slabs):
            slab = 16 * -(-along // each)
            shared = shared_bytes((rows, columns, groups, parts), slab, work.squeeze, work.count)
            if shared <= MOST_SHARED and work.squeeze <= 128 * rows * columns * parts:
                tiles = -(-down // rows) * -(-across // (columns * groups))
                yield Geometry(rows, columns, groups, parts, slab, tiles, each, shared)


def cycles(g: Geometry, work: Work) -> float:
    """What a multiprocessor takes, roughly: its blocks' bytes or instructions, and what a warp of one waits for."""
    blocks = -(-work.images * g.tiles * g.slabs // MULTIPROCESSORS)
    warps, tiles = g.threads // 32, g.slab // 16
    busy = max(sum(block_bytes(g, work)) / BYTES, warp_instructions(g, work) * max(1, warps / SCHEDULERS))
    units, steps = _gate_work(g, work)
    waits = units * steps * GATE_STEP + -(-tiles // g.slab_warps) * PROJECT_STEP
    waits += -(-_thread_terms(g, work) // TERMS) * WAIT
    return blocks * busy + waits + (EXCHANGE if g.slabs > 1 else 0)


def block_bytes(g: Geometry, work: Work) -> tuple[int, ...]:
    """What a full block reads from L2: terms, fc2, weight, hidden, and the slabs that it adds up if it comes last."""
    slab, rows, columns = min(g.slab, work.channels), min(g.rows, work.pixels), min(g.columns, work.outputs)
    slabs = 0 if g.slabs == 1 else 4 * g.rows * g.columns * (g.slabs + 1)
    return 4 * work.count * work.squeeze, 2 * slab * work.squeeze, 2 * slab * columns, 2 * slab * rows, slabs


def warp_instructions(g: Geometry, work: Work) -> int:
    """What a warp issues, as counted in the code for sm_80 (README): outside of loops, and for each turn of one."""
    tiles, steps = g.slab // 16, -(-work.squeeze // 16)
    units, unit_steps = _gate_work(g, work)
    copies = 9 * tiles * steps * 32 + 12 * tiles * 32 * g.column_warps * g.groups + 26 * g.rows * g.slab // 8
    gates = units * (39 + 8 * unit_steps) + -(-g.slab // g.threads) * 48 + -(-8 * steps // g.threads) * 92
    project = -(-tiles // g.slab_warps) * (30 + 6 * g.groups) + (g.slab_warps - 1) * 15 * g.groups
    slabs = 0 if g.slabs == 1 else -(-g.slabs * g.groups // 8) * 140
    terms = -(-_thread_terms(g, work) // TERMS) * 75
    return 480 + 270 * g.groups + terms + copies // g.threads + gates + project + slabs


def _thread_terms(g: Geometry, work: Work) -> int:
    """Terms of four squeezed channels that a thread adds up."""
    return -(-work.count // min(work.count, 4 * g.threads // work.squeeze))


def _gate_work(g: Geometry, work: Work) -> tuple[int, int]:
    """Products of 16 channels of fc2 that a warp computes, and of how many 16 squeezed channels each is."""
    tiles, warps = g.slab // 16, g.threads // 32
    shares = max(1, warps // tiles)
    return -(-tiles * shares // warps), -(-work.squeeze // (16 * shares))


def launches(
    packed: Packed, hidden: Tensor, parts: Tensor, output: Tensor, residual: Tensor | None, arena: Arena
) -> list[CudaLaunch]:
    """The launch that computes a block's output from its depthwise layer's; none for an empty batch.

    Args:
        packed: of :func:`pack`.
        hidden: [N, C, H, W] float16 or bfloat16, strides (H*W*C, 1, W*C, C).
        parts: [N, count, S] float32, dense: terms of ``fc1_weight mean``, without bias.
        output: [N, O, H, W] of hidden's dtype, strides likewise.
        residual: added to the output; as the output, or None.
        arena: gives what lies between the slabs of channels, and zeroed counters.

    Raises:
        ValueError: for a block that :func:`is_known` does not know.
    """
    images, channels, height, width = hidden.shape
    pixels, count = height * width, parts.shape[1]
    sizes = channels, packed.squeeze, packed.outputs
    if not is_known(hidden.dtype, images, pixels, *sizes):
        raise ValueError(
            f"gated_project: there is a CUDA kernel for float16 and bfloat16, at most {MOST_BLOCKS} images, channels "
            f"that are multiples of 8 and at most {4 * THREADS} squeezed ones, got {hidden.dtype}, "
            f"{list(hidden.shape)} with {packed.squeeze} squeezed and {packed.outputs} output channels"
        )
    if images == 0:
        return []
    g = geometry(Work(images, pixels, *sizes, count))
    partials = arrivals = None
    if g.slabs > 1:
        partials = arena.take("partials", (images, g.tiles, g.slabs * g.rows * g.columns), torch.float32)
        arrivals = arena.take_zeroed("arrivals", (images, g.tiles), torch.int32)
    arguments = {
        "hidden": hidden, "parts": parts, "fc1_bias": packed.fc1_bias, "fc2_weight": packed.fc2_weight,
        "fc2_bias": packed.fc2_bias, "weight": packed.weight, "bias": packed.bias, "residual": residual,
        "output": output, "partials": partials, "arrivals": arrivals, "slope": packed.slope, "pixels": pixels,
        "channels": channels, "squeeze": packed.squeeze, "outputs": packed.outputs, "count": count,
        "dtype": DTYPES[hidden.dtype], "squeeze_activation": packed.squeeze_activation,
        "activation": packed.activation, "gate": packed.gate, "row_warps": g.row_warps,
        "column_warps": g.column_warps, "groups": g.groups, "slab_warps": g.slab_warps, "slab": g.slab,
    }  # fmt: skip
    constants = {"DTYPE": str(hidden.dtype).removeprefix("torch."), "GROUPS": g.groups}
    return [CudaLaunch(KERNEL, (g.tiles, g.slabs, images), arguments, g.threads, g.shared, constants)]
