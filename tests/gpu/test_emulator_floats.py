"""Each opcode on floats, against exact fractions and torch."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.gpu.arithmetic import PURE
from tests.gpu.assemble import compute
from tests.gpu.operands import (
    ORDER,
    RANDOM,
    REGISTER,
    SPECIAL,
    assert_same_floats,
    bits_of,
    floats,
    nearest_float,
)


@pytest.mark.parametrize(("opcode", "function"), [("add.f32", torch.add), ("sub.f32", torch.sub), ("mul.f32", torch.mul), ("add.rn.f32", torch.add), ("sub.rn.f32", torch.sub), ("mul.rn.f32", torch.mul), ("div.rn.f32", torch.div), ("div.full.f32", torch.div)])  # fmt: skip
def test_float_arithmetic(opcode: str, function: torch._C._VariableFunctions) -> None:
    a, b = floats(2)
    wanted = function(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    assert_same_floats(compute(opcode, "r", bits_of(a), bits_of(b)), wanted)


def test_fma_rounds_once() -> None:
    a, b, c = floats(3)
    # Ties of the 25th bit that float64 alone would round wrongly: 1 + 2^-24 plus or minus something far below.
    ties = [(1 + 2.0**-12, 1 + 2.0**-12, sign * 2.0**-k) for sign in (-1, 1) for k in (23, 24, 40, 70, 100)]
    ties += [(1.0, 1 + 2.0**-23, sign * (2.0**-24 + 2.0**-60)) for sign in (-1, 1)]
    ties += [(x, 2.0**-24, 1.0 + y * 2.0**-23) for x in (1.0, 1 + 2.0**-23, 1 - 2.0**-24) for y in range(4)]
    ties += [(2.0**-100, 2.0**-49 * (1 + k * 2.0**-23), 2.0**-149 * k) for k in range(5)]
    a, b, c = (
        np.concatenate([v, np.array(column, np.float32)])
        for v, column in zip((a, b, c), zip(*ties, strict=True), strict=True)
    )
    wanted = []
    for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        if all(map(math.isfinite, (x, y, z))):
            exact = Fraction(x) * Fraction(y) + Fraction(z)
            wanted.append(nearest_float(exact))
        else:
            wanted.append(x * y + z)
    got = compute("fma.rn.f32", "r", *map(bits_of, (a, b, c))).view(np.float32)
    wanted = np.array(wanted, np.float32)
    # Fractions have no negative zero, so zeros are compared without their sign.
    assert np.array_equal(np.isnan(got), np.isnan(wanted))
    assert np.array_equal(got[~np.isnan(got)], wanted[~np.isnan(wanted)])


@pytest.mark.parametrize("opcode", ["min", "max", "min.NaN", "max.NaN"])
def test_minimum_and_maximum(opcode: str) -> None:
    a, b = floats(2)

    def choose(x: float, y: float) -> float:
        if math.isnan(x) or math.isnan(y):
            return (
                math.nan
                if "NaN" in opcode or (math.isnan(x + y) and math.isnan(x) and math.isnan(y))
                else (y if math.isnan(x) else x)
            )
        key = sorted((x, y), key=lambda v: (v, math.copysign(1, v)))
        return key[0 if opcode.startswith("min") else 1]

    wanted = np.array([choose(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)], np.float32)
    assert_same_floats(compute(f"{opcode}.f32", "r", bits_of(a), bits_of(b)), wanted)


def test_neg_and_abs_change_the_sign_bit_alone() -> None:
    bits = bits_of(floats()[0])
    assert np.array_equal(compute("neg.f32", "r", bits), bits ^ np.uint32(1 << 31))
    assert np.array_equal(compute("abs.f32", "r", bits), bits & np.uint32((1 << 31) - 1))


@pytest.mark.parametrize(
    ("opcode", "function"),
    [
        ("sqrt.rn", torch.sqrt), ("sqrt.approx", torch.sqrt), ("rsqrt.approx", torch.rsqrt), ("ex2.approx", torch.exp2),
        ("lg2.approx", torch.log2), ("rcp.rn", torch.reciprocal), ("rcp.approx", torch.reciprocal),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flush", [False, True])
def test_approximations(opcode: str, function: torch._C._VariableFunctions, flush: bool) -> None:
    if flush and "rn" in opcode:
        assert f"{opcode}.ftz.f32" not in PURE
        return
    (a,) = floats()
    small = np.abs(a) < 2.0**-126
    seen = np.where(small & flush, np.copysign(np.float32(0), a), a).astype(np.float32)
    wanted = function(torch.from_numpy(seen).double()).float().numpy()
    if flush:
        wanted = np.where(np.abs(wanted) < 2.0**-126, np.copysign(np.float32(0), wanted), wanted)
    got = compute(f"{opcode}{'.ftz' if flush else ''}.f32", "r", bits_of(a)).view(np.float32)
    assert np.array_equal(np.isnan(got), np.isnan(wanted))
    numbers = np.isfinite(wanted)
    assert np.array_equal(got[~numbers & ~np.isnan(got)], wanted[~numbers & ~np.isnan(got)])
    assert (np.abs(got[numbers].astype(float) - wanted[numbers]) <= 2.0**-23 * np.abs(wanted[numbers])).all()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_sixteen_bit_floats(kind: str) -> None:
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    every = np.arange(2**16).astype(np.uint16)
    exact = torch.from_numpy(every.view(np.int16)).view(dtype).float().numpy()
    assert_same_floats(compute(f"cvt.f32.{kind}", "r", every), exact)
    # Every value, the midpoints between neighbours (ties), and what lies next to those.
    finite = np.sort(exact[np.isfinite(exact)]).astype(np.float64)
    middles = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    edges = [middles, np.nextafter(middles, np.float32(-np.inf)), np.nextafter(middles, np.float32(np.inf))]
    values = np.concatenate([*floats(), exact, *edges]).astype(np.float32)
    wanted = torch.from_numpy(values).to(dtype)
    got = torch.from_numpy(compute(f"cvt.rn.{kind}.f32", "rs", bits_of(values)).view(np.int16).copy()).view(dtype)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.nan_to_num(0), wanted.nan_to_num(0)) and torch.equal(
        got.signbit()[~got.isnan()], wanted.signbit()[~wanted.isnan()]
    )
    other = np.roll(values, 1)
    pair = compute(f"cvt.rn.{kind}x2.f32", "r", bits_of(values), bits_of(other))
    low, high = (pair & 0xFFFF).astype(np.uint16), (pair >> 16).astype(np.uint16)
    assert np.array_equal(high, got.view(torch.int16).numpy().view(np.uint16))
    assert np.array_equal(low, np.roll(high, 1))


def test_tf32_rounds_ties_away_from_zero() -> None:
    values = np.array([1 + 2.0**-11, -(1 + 2.0**-11), 1 + 2.0**-11 - 2.0**-23, 1 + 3 * 2.0**-11, math.inf], np.float32)
    wanted = np.array([1 + 2.0**-10, -(1 + 2.0**-10), 1.0, 1 + 2.0**-9, math.inf], np.float32)
    assert_same_floats(compute("cvt.rna.tf32.f32", "r", bits_of(values)), wanted)


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_floats_to_integers_saturate(kind: str, mode: str) -> None:
    bits = int(kind[1:])
    low, high = (0, 2**bits - 1) if kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    round_one = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[mode]
    (values,) = floats()
    wanted = []
    for value in values.tolist():
        whole = 0 if math.isnan(value) else (high if value > 0 else low) if math.isinf(value) else round_one(value)
        wanted.append(min(max(whole, low), high) % 2**bits)
    got = compute(f"cvt.{mode}.{kind}.f32", REGISTER[bits], bits_of(values))
    assert got.tolist() == wanted


def test_comparisons_of_floats() -> None:
    a, b = floats(2)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    unordered = [math.isnan(x) or math.isnan(y) for x, y in pairs]
    for word, method in ORDER.items():
        plain = [getattr(x, method)(y) for x, y in pairs]
        ordered = [p and not u for p, u in zip(plain, unordered, strict=True)]
        either = [p or u for p, u in zip(plain, unordered, strict=True)]
        assert compute(f"setp.{word}.f32", "p", bits_of(a), bits_of(b)).tolist() == ordered
        assert compute(f"setp.{word}u.f32", "p", bits_of(a), bits_of(b)).tolist() == either
    assert compute("setp.nan.f32", "p", bits_of(a), bits_of(b)).tolist() == unordered
    assert compute("setp.num.f32", "p", bits_of(a), bits_of(b)).tolist() == [not u for u in unordered]


def halves_from(kind: str, bits: NDArray[np.uint16]) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16).copy()).view(torch.float16 if kind == "f16" else torch.bfloat16)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_arithmetic_of_sixteen_bit_floats(kind: str) -> None:
    special = (
        torch.tensor(SPECIAL)
        .to(torch.float16 if kind == "f16" else torch.bfloat16)
        .view(torch.int16)
        .numpy()
        .view(np.uint16)
    )
    a, b, c = (
        np.concatenate([RANDOM.permutation(special), RANDOM.integers(0, 2**16, 3000).astype(np.uint16)])
        for _ in range(3)
    )
    # Sums that lie between two numbers: a tie, and next to one.
    one, tiny = (0x3C00, 0x0001) if kind == "f16" else (0x3F80, 0x0080)
    for x, y, z in (
        (one, one, 0x1000),
        (one + 1, one + 1, tiny),
        (one + 1, 0x8000 + one + 1, one),
        (one, tiny, one + 3),
    ):
        a, b, c = np.append(a, np.uint16(x)), np.append(b, np.uint16(y)), np.append(c, np.uint16(z))
    values = [halves_from(kind, v).double().tolist() for v in (a, b, c)]
    precision, smallest, largest = (11, -24, 65504.0) if kind == "f16" else (8, -133, 3.3895313892515355e38)
    wanted = []
    for x, y, z in zip(*values, strict=True):
        if not all(map(math.isfinite, (x, y, z))):
            wanted.append(x * y + z)
            continue
        near = nearest_float(Fraction(x) * Fraction(y) + Fraction(z), precision, smallest)
        wanted.append(math.copysign(math.inf, near) if abs(near) > largest else near)
    for suffix, operands in (
        ("", (a, b, c)),
        ("x2", tuple(v.astype(np.uint32) << 16 | np.roll(v, 1) for v in (a, b, c))),
    ):
        got = compute(f"fma.rn.{kind}{suffix}", "r" if suffix else "rs", *operands)
        for part, turn in ((got >> 16, 0), (got & 0xFFFF, 1)) if suffix else ((got, 0),):
            numbers = halves_from(kind, part.astype(np.uint16)).double().numpy()
            right = np.roll(np.array(wanted), turn)
            assert np.array_equal(np.isnan(numbers), np.isnan(right))
            assert np.array_equal(numbers[~np.isnan(right)], right[~np.isnan(right)])
    if kind == "f16":
        for opcode, function in (("add", torch.add), ("sub", torch.sub), ("mul", torch.mul)):
            got = halves_from(kind, compute(f"{opcode}.f16", "rs", a, b))
            exact = function(halves_from(kind, a).double(), halves_from(kind, b).double()).half()
            assert torch.equal(got.isnan(), exact.isnan()) and torch.equal(got.nan_to_num(0), exact.nan_to_num(0))
