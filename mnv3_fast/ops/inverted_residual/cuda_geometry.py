"""How the first launch of an inverted residual block divides its work, chosen by counts (``cuda_kernel``).

The counts are those of the compiled code, put into formulas: instructions, bytes and products of a block of threads.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from mnv3_fast.gpu.fragments import COLUMNS

THREADS = 256
WARPS = THREADS // 32
STRIP = 7
"""Pixels of a row that a thread convolves."""
MOST_OUTPUTS = 80
"""That a launch which projects keeps in registers."""
MOST_SHARED = 99 << 10
"""Bytes of shared memory of a block: what sm_86, 89 and 120 give."""
MOST_TILE = 28
"""Rows and columns of a tile at most: more do not fit."""
MULTIPROCESSORS = 108
"""Of the GPU that tiles are chosen for, in the middle of those with 82 to 170. A number for all, so that a result does
not depend on the device."""
BYTES = 64
"""That a multiprocessor reads from L2 in a cycle."""
PRODUCT = 4
"""Cycles of a multiprocessor for 16 x 8 x 16 products on tensor cores, between 1 (sm_90) and 8 (sm_86, 89, 120)."""
WAIT = 2.5
"""Cycles that a warp takes for an instruction where few others are there to hide what it waits for."""
CONVOLVE = {(3, 1): 350, (3, 2): 400, (5, 1): 790, (5, 2): 890}
"""Instructions for a strip of pixels, by kernel size and stride. These and those in :func:`steps` were counted in the
code for sm_80 (README.md)."""


@dataclass(frozen=True)
class Work:
    """What a launch computes for an image: sizes of maps and channels; ``outputs`` is 0 where it ends at the gate."""

    height: int
    width: int
    out_height: int
    out_width: int
    inputs: int
    hidden: int
    outputs: int
    kernel: int
    stride: int


@dataclass(frozen=True)
class Geometry:
    """How a launch divides its work.

    Attributes:
        tile_h, tile_w: pixels of a block's tile of the output map.
        slab: hidden channels of a block.
        chunk: of them that are in shared memory at a time.
        splits: warps that share tiles of the projection.
        shared: bytes of shared memory of a block.
    """

    tile_h: int
    tile_w: int
    slab: int
    chunk: int
    splits: int
    shared: int

    def grid(self, work: Work) -> tuple[int, int]:
        """Blocks along the tiles and along the hidden channels."""
        return -(-work.out_height // self.tile_h) * -(-work.out_width // self.tile_w), -(-work.hidden // self.slab)


@functools.cache
def geometry(work: Work, images: int) -> Geometry:
    """The division of a launch that takes the fewest cycles by :func:`cycles`."""
    return min(geometries(work), key=lambda each: cycles(each, work, images))


def geometries(work: Work) -> Iterator[Geometry]:
    """Those that fit into shared memory, and into the registers of a block."""
    if work.outputs > MOST_OUTPUTS:
        return
    along = -(-work.hidden // COLUMNS)
    counts = sorted({-(-along // each) for each in range(1, along + 1)})  # of 16 hidden channels
    heights = sorted({-(-work.out_height // each) for each in range(1, work.out_height + 1)})
    widths = range(STRIP, -(-work.out_width // STRIP) * STRIP + 1, STRIP)
    for tile_h, tile_w, count in itertools.product(heights, widths, counts):
        if max(tile_h, tile_w) > MOST_TILE:
            continue
        chunk = count * COLUMNS
        slab = along * COLUMNS if work.outputs else chunk
        for splits in (1, 2, 4, 8) if work.outputs else (1,):
            shared = shared_bytes(work, tile_h, tile_w, slab, chunk, splits)
            if shared <= MOST_SHARED and (not work.outputs or _tiles(tile_h * tile_w) * splits <= WARPS):
                yield Geometry(tile_h, tile_w, slab, chunk, splits, shared)


def _tiles(count: int) -> int:
    return -(-count // 16)


def _patch(work: Work, tile_h: int, tile_w: int) -> tuple[int, int, int]:
    """Rows and columns of hidden pixels that a tile reads, and how many lie inside of the map at most."""
    rows, columns = (tile_h - 1) * work.stride + work.kernel, (tile_w - 1) * work.stride + work.kernel
    return rows, columns, min(rows, work.height) * min(columns, work.width)


def shared_bytes(work: Work, tile_h: int, tile_w: int, slab: int, chunk: int, splits: int) -> int:
    """Of a block, as ``csrc/ops/inverted_residual/tile.h`` lays it out."""
    rows, columns, inside = _patch(work, tile_h, tile_w)
    steps, out_rows, out_columns = _tiles(work.inputs), _tiles(tile_h * tile_w), _tiles(work.outputs)
    before = 4 * (2 + work.kernel**2) * slab + 128 * _tiles(inside)
    own = 16 * _tiles(inside) * (32 * steps + 16) + 32 * chunk * steps + rows * columns * (2 * chunk + 16)
    if not work.outputs:
        return before + own + 4 * slab * (tile_h * tile_w // STRIP + 1)
    own += 32 * chunk * out_columns + 16 * out_rows * (2 * chunk + 16)
    return before + max(own, 64 * splits * out_rows * (16 * out_columns + 8))


def cycles(g: Geometry, work: Work, images: int) -> float:
    """What a multiprocessor takes, roughly: its blocks by what binds them, and what one waits for besides."""
    tiles, slabs = g.grid(work)
    blocks = -(-tiles * slabs * images // MULTIPROCESSORS)
    each = steps(g, work)
    issue = sum(total for _, total in each) / 4
    longest = sum(count for count, _ in each)
    return blocks * max(block_bytes(g, work) / BYTES, issue, products(g, work) * PRODUCT) + WAIT * longest


def block_bytes(g: Geometry, work: Work) -> int:
    """What a block reads from L2: its pixels of the input, weights, biases and taps."""
    inside = _patch(work, g.tile_h, g.tile_w)[2]
    return 2 * inside * work.inputs + 2 * g.slab * (work.inputs + work.outputs) + 4 * g.slab * (2 + work.kernel**2)


def products(g: Geometry, work: Work) -> int:
    """Of 16 x 8 x 16 on tensor cores."""
    inside = _patch(work, g.tile_h, g.tile_w)[2]
    expand = _tiles(inside) * _tiles(work.inputs)
    return 2 * g.slab // 16 * (expand + _tiles(g.tile_h * g.tile_w) * _tiles(work.outputs))


def steps(g: Geometry, work: Work) -> list[tuple[float, float]]:
    """The instructions of each step of a block: those of the warp that has most, and of all warps."""
    rows, columns, inside = _patch(work, g.tile_h, g.tile_w)
    k, pixels = _tiles(work.inputs), g.tile_h * g.tile_w
    copied = (inside * k * 4 + g.slab * (2 * work.inputs + 2 * work.outputs + 4 * (2 + work.kernel**2)) / 16) / THREADS
    start = 350 + 12 * copied + 31 * -(-inside // THREADS) + rows * columns * (g.chunk + 8) / 8 / THREADS * 2
    chunks, squeezing = -(-g.slab // g.chunk), 0 if work.outputs else 8 * pixels // STRIP + 250
    found = [(start, WARPS * start)]
    for chunk in range(chunks):
        count = min(g.chunk, g.slab - chunk * g.chunk)
        tiles, n = _tiles(inside), count // 16
        each = 2 if -(-tiles // 2) * n >= WARPS else 1
        units, unit = -(-tiles // each) * n, 90 + 52 * each + (17 + 6 * each) * -(-k // 2)
        found.append((-(-units // WARPS) * unit, units * unit))
        tasks, task = pixels // STRIP * count / 2 / THREADS, CONVOLVE[work.kernel, work.stride]
        found.append((math.ceil(tasks) * task, tasks * WARPS * task))
        if work.outputs:
            turn = 20 + 5 * _tiles(work.outputs)
            turns = -(-n // g.splits)
            found.append((turns * turn + 40, turns * turn * _tiles(pixels) * g.splits + 40 * WARPS))
    vectors = pixels * work.outputs / 8 / THREADS
    finish = squeezing + (100 + math.ceil(vectors) * (130 + 16 * g.splits) if work.outputs else 0)
    return [*found, (finish, WARPS * finish)]
