"""The arithmetic of a GPU on numpy arrays: 16-bit floats, fused multiply-add, minimum and maximum, approximations.

Registers hold bits; what is written here takes and gives float32 (or the bits of 16-bit floats, as uint16).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Halves = NDArray[np.uint16]

CANONICAL_NAN = np.uint32(0x7FFFFFFF)
_HALF_VALUES = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float32)
_SMALLEST_NORMAL = 2.0**-126


def half_to_float(bits: Halves) -> Floats:
    """The values of float16, from a table of all 65,536: numpy converts them one by one."""
    return _HALF_VALUES[bits]


def float_to_half(values: Floats) -> Halves:
    """float16 by rounding to nearest even; NaN becomes the one NaN that a GPU writes."""
    return np.where(np.isnan(values), np.uint16(0x7FFF), values.astype(np.float16).view(np.uint16))


def bfloat_to_float(bits: Halves) -> Floats:
    """The values of bfloat16, which are the upper halves of float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float_to_bfloat(values: Floats) -> Halves:
    """bfloat16 by rounding to nearest even."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded.astype(np.uint16))


def float_to_tf32(values: Floats) -> Floats:
    """TF32 by rounding to nearest, ties away from zero: 10 bits of mantissa are left."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded, bits & np.uint32(0xFFFFE000)).astype(np.uint32).view(np.float32)


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c with one rounding.

    The product of two floats is exact in float64, the sum is not: where its rounding could decide the rounding to
    float32, the sum is rounded to odd first (Boldo and Melquiond), after which rounding once more is harmless.
    """
    product = a.astype(np.float64) * b
    total = product + c
    tail = total.view(np.uint64) & np.uint64(0x1FFFFFFF)
    if (tail == 0x10000000).any() or ((np.abs(total) < _SMALLEST_NORMAL) & (total != 0)).any():
        total = _round_to_odd(product, np.broadcast_to(c.astype(np.float64), total.shape), total)
    return total.astype(np.float32)


def _round_to_odd(a: NDArray[np.float64], b: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    part = total - a
    error = (a - (total - part)) + (b - part)
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & ((bits & 1) == 0)
    towards_zero = (error > 0) != (total > 0)
    return np.where(inexact, bits + np.where(towards_zero, -1, 1), bits).view(np.float64)


def fma_halves(
    widen: Callable[[Halves], Floats], narrow: Callable[[Floats], Halves]
) -> Callable[[Halves, Halves, Halves], Halves]:
    """a * b + c of 16-bit floats with one rounding: every rounding before the last is to odd."""

    def compute(a: Halves, b: Halves, c: Halves) -> Halves:
        product = widen(a).astype(np.float64) * widen(b)
        addend = np.broadcast_to(widen(c).astype(np.float64), product.shape)
        return narrow(_odd_float(_round_to_odd(product, addend, product + addend)))

    return compute


def _odd_float(values: NDArray[np.float64]) -> Floats:
    """float64 to float32: towards zero, and where that is inexact with the last bit set."""
    near = values.astype(np.float32)
    towards = np.where(np.abs(near) > np.abs(values), np.nextafter(near, np.float32(0)), near).astype(np.float32)
    inexact = (towards != values) & ~np.isnan(values)
    return np.where(inexact, towards.view(np.uint32) | np.uint32(1), towards.view(np.uint32)).view(np.float32)


def minimum(a: Floats, b: Floats) -> Floats:
    """The smaller; a number before NaN, and -0 before +0."""
    zeros = (a == 0) & (b == 0)
    signs = (a.view(np.uint32) | b.view(np.uint32)).view(np.float32)
    return np.where(zeros, signs, np.fmin(a, b))


def maximum(a: Floats, b: Floats) -> Floats:
    """The larger; a number before NaN, and +0 before -0."""
    zeros = (a == 0) & (b == 0)
    signs = (a.view(np.uint32) & b.view(np.uint32)).view(np.float32)
    return np.where(zeros, signs, np.fmax(a, b))


def minimum_nan(a: Floats, b: Floats) -> Floats:
    """The smaller, or NaN if either is."""
    return np.where(np.isnan(a) | np.isnan(b), CANONICAL_NAN.view(np.float32), minimum(a, b))


def maximum_nan(a: Floats, b: Floats) -> Floats:
    """The larger, or NaN if either is."""
    return np.where(np.isnan(a) | np.isnan(b), CANONICAL_NAN.view(np.float32), maximum(a, b))


def flush(values: Floats) -> Floats:
    """Subnormal numbers as zeros of their sign, as ``.ftz`` has them."""
    return np.where(np.abs(values) < np.float32(_SMALLEST_NORMAL), np.copysign(np.float32(0), values), values)


def rounded(function: np.ufunc, *values: Floats) -> Floats:
    """A function in float64, rounded to float32: what the hardware approximates within two units in the last place."""
    return function(*(v.astype(np.float64) for v in values)).astype(np.float32)


def divide(a: Floats, b: Floats) -> Floats:
    """a / b: IEEE division in float32, which is also what ``div.full`` approximates."""
    return a / b


def reciprocal(a: Floats) -> Floats:
    """1 / a."""
    return np.float32(1) / a


def reciprocal_root(a: Floats) -> Floats:
    """1 / sqrt(a)."""
    return rounded(lambda v: 1 / np.sqrt(v), a)


def to_integer(values: Floats, kind: np.dtype, rounding: np.ufunc) -> NDArray:
    """Floats to integers as ``cvt`` has it: out of range becomes the nearest in range, NaN becomes 0."""
    limits = np.iinfo(kind)
    whole = rounding(values.astype(np.float64))
    inside = np.clip(np.nan_to_num(whole, nan=0.0, posinf=np.inf, neginf=-np.inf), float(limits.min), float(limits.max))
    # The largest integer of 64 bits is no float64: clipping gives one more.
    top = inside >= float(limits.max)
    return np.where(top, limits.max, np.where(top, 0, inside).astype(kind)).astype(kind)
