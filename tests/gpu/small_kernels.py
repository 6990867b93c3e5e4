"""Small Triton kernels that the emulator's own tests run: one for each kind of code that Triton writes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def copy(x, y, size, BLOCK: tl.constexpr):
    """y = x, with a tail."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < size), mask=at < size)


@triton.jit
def row_sums(x, y, columns, BLOCK: tl.constexpr):
    """The sum of each row: across lanes by shuffles, across warps through shared memory."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    values = tl.load(x + row * columns + at, mask=at < columns, other=0.0)
    tl.store(y + row, tl.sum(values.to(tl.float32), axis=0))


@triton.jit
def strided(x, y, rows, columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Every ``stride``-th row of a matrix."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    values = tl.load(x + (row * stride)[:, None] * columns + column[None, :], mask=inside)
    tl.store(y + row[:, None] * columns + column[None, :], values, mask=inside)


@triton.jit
def matmul(x, w, y, m, k, n, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr):
    """y[m, n] = x[m, k] @ w[n, k]^T, with tails everywhere and a pipelined loop over k."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, k, K):
        at = start + tl.arange(0, K)
        a = tl.load(x + row[:, None] * k + at[None, :], mask=(row < m)[:, None] & (at < k)[None, :], other=0.0)
        b = tl.load(w + column[None, :] * k + at[:, None], mask=(column < n)[None, :] & (at < k)[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    inside = (row < m)[:, None] & (column < n)[None, :]
    tl.store(y + row[:, None] * n + column[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def elementwise(x, y, size, BLOCK: tl.constexpr):
    """exp, sigmoid, square roots and divisions of floats, and divisions of integers."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    v = tl.load(x + at, mask=inside, other=1.0).to(tl.float32)
    r = tl.exp(-tl.abs(v)) + tl.sigmoid(v) + tl.sqrt(tl.abs(v)) + tl.rsqrt(tl.abs(v) + 1.0) + v / (2.0 + v * v)
    r += (at // 7).to(tl.float32) + (at % 5).to(tl.float32) + tl.minimum(tl.maximum(v, -1.0), 1.0)
    tl.store(y + at, r.to(y.dtype.element_ty), mask=inside)


@triton.jit
def repeat(x, y, counts, BLOCK: tl.constexpr):
    """A loop whose length differs from program to program."""
    program = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(tl.load(counts + program)):
        total += tl.load(x + at)
    if program % 2 == 0:
        total = -total
    tl.store(y + program * BLOCK + at, total)


@triton.jit
def halve(x, y, BLOCK: tl.constexpr):
    """Two lanes write each output."""
    at = tl.arange(0, BLOCK)
    tl.store(y + at // 2, tl.load(x + at))


@triton.jit
def exchange(x, work, y, shift, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """Threads hand values to each other through global memory; across programs if the block is no longer than the shift."""
    first = tl.program_id(0) * BLOCK
    at = tl.arange(0, BLOCK)
    tl.store(work + first + at, tl.load(x + first + at))
    if BARRIER:
        tl.debug_barrier()
    other = (first + at + shift) % (tl.num_programs(0) * BLOCK) if BLOCK <= 128 else first + (at + shift) % BLOCK
    tl.store(y + first + at, tl.load(work + other))
