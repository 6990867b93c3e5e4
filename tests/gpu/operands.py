"""Operands that opcodes are tried on: special values, edges and random ones; and exact rounding to compare with."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

RANDOM = np.random.default_rng(0)
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 1e-45, -1e-45, 1.17549421e-38, 1.17549435e-38, 3.4028235e38, -3.4028235e38,
     math.inf, -math.inf, math.nan, 65504.0, 65519.99, 65520.0, 6e-8, 2.98e-8, 1e30, 1e-30, 3e9, -3e9],
    np.float32,
)  # fmt: skip
INTEGERS = [0, 1, 2, 3, 5, 7, 8, 31, 32, 33, 63, 64, 100, 127, 128, 255, 256, 32767, 32768, 65535]
INTEGERS += [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 2, 2**64 - 7, 2**64 - 2**31]
REGISTER = {16: "rs", 32: "r", 64: "rd"}


def floats(count: int = 1) -> list[NDArray[np.float32]]:
    """``count`` operands: all combinations of special values, then random ones of all magnitudes."""
    grids = np.meshgrid(*[SPECIAL] * min(count, 2), indexing="ij")
    columns = [grid.reshape(-1) for grid in grids]
    columns += [RANDOM.permutation(columns[0]) for _ in range(count - len(columns))]
    wild = [RANDOM.integers(0, 2**32, 500, np.uint32).view(np.float32) for _ in range(count)]
    tame = [RANDOM.standard_normal(500).astype(np.float32) for _ in range(count)]
    return [np.concatenate(parts) for parts in zip(columns, wild, tame, strict=True)]


def integers(bits: int, count: int) -> list[list[int]]:
    """``count`` operands as unsigned integers: combinations of edges, then random ones."""
    edges = sorted({value % 2**bits for value in INTEGERS})
    grids = np.meshgrid(*[np.arange(len(edges))] * min(count, 2), indexing="ij")
    columns = [[edges[i] for i in grid.reshape(-1)] for grid in grids]
    columns += [
        [edges[i] for i in RANDOM.integers(0, len(edges), len(columns[0]))] for _ in range(count - len(columns))
    ]
    return [column + [int.from_bytes(RANDOM.bytes(bits // 8), "little") for _ in range(100)] for column in columns]


def signed(value: int, bits: int) -> int:
    return value - 2**bits if value >= 2 ** (bits - 1) else value


def bits_of(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)


def assert_same_floats(got: NDArray, wanted: NDArray) -> None:
    """The same bits, NaN for NaN."""
    got, wanted = got.view(np.float32), np.asarray(wanted, np.float32)
    assert np.array_equal(np.isnan(got), np.isnan(wanted))
    numbers = ~np.isnan(wanted)
    assert np.array_equal(bits_of(got)[numbers], bits_of(wanted)[numbers])


def nearest_float(value: Fraction, precision: int = 24, smallest: int = -149) -> float:
    """An exact number rounded to nearest even with some bits of mantissa, and infinity beyond float32."""
    if value == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(value.numerator)) - math.log2(value.denominator)) + 1
    while abs(value) >= Fraction(2) ** exponent:
        exponent += 1
    while abs(value) < Fraction(2) ** (exponent - 1):
        exponent -= 1
    unit = Fraction(2) ** max(exponent - precision, smallest)
    rounded = round(value / unit) * unit
    return math.copysign(math.inf, rounded) if abs(rounded) >= 2**128 else float(rounded)


ORDER = {"eq": "__eq__", "ne": "__ne__", "lt": "__lt__", "le": "__le__", "gt": "__gt__", "ge": "__ge__"}
