"""Each opcode on integers, bits and predicates, against Python's integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gpu.assemble import compute
from tests.gpu.operands import (
    ORDER,
    RANDOM,
    REGISTER,
    assert_same_floats,
    integers,
    nearest_float,
    signed,
)


@pytest.mark.parametrize("kind", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_integers_to_floats_and_to_each_other(kind: str) -> None:
    bits = int(kind[1:])
    width = max(bits, 16)
    (column,) = integers(width, 1)
    operand = np.array(column, f"u{width // 8}")
    values = [signed(v % 2**bits, bits) if kind[0] == "s" else v % 2**bits for v in column]
    wanted = np.array([nearest_float(Fraction(v)) for v in values], np.float32)
    assert_same_floats(compute(f"cvt.rn.f32.{kind}", "r", operand), wanted)
    for other in ("u16", "s16", "u32", "s32", "u64", "s64"):
        if other != kind:
            got = compute(f"cvt.{other}.{kind}", REGISTER[int(other[1:])], operand)
            assert got.tolist() == [v % 2 ** int(other[1:]) for v in values]


def _truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul.lo": lambda a, b: a * b, "min": min, "max": max,
    "div": _truncated, "rem": lambda a, b: a - _truncated(a, b) * b,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_integer_arithmetic(kind: str) -> None:
    bits, sign = int(kind[1:]), kind[0] == "s"
    columns = integers(bits, 3)
    a, b, c = ([signed(v, bits) if sign else v for v in column] for column in columns)
    operands = [np.array(column, f"u{bits // 8}") for column in columns]

    def check(opcode: str, wanted: list[int], used: int, width: int = bits, keep: NDArray | None = None) -> None:
        got = compute(f"{opcode}.{kind}", REGISTER[width], *operands[:used])
        wanted = np.array([w % 2**width for w in wanted], f"u{width // 8}")
        assert np.array_equal(got, wanted) if keep is None else np.array_equal(got[keep], wanted[keep]), opcode

    for opcode, function in BINARY.items():
        keep = np.array(b) != 0 if opcode in ("div", "rem") else None
        values = [0 if keep is not None and y == 0 else function(x, y) for x, y in zip(a, b, strict=True)]
        check(opcode, values, 2, keep=keep)
    check("mul.hi", [x * y >> bits for x, y in zip(a, b, strict=True)], 2)
    check("mad.lo", [x * y + z for x, y, z in zip(a, b, c, strict=True)], 3)
    if sign:
        check("neg", [-x for x in a], 1)
        check("abs", [abs(x) for x in a], 1)
    if bits < 64:
        check("mul.wide", [x * y for x, y in zip(a, b, strict=True)], 2, 2 * bits)
        operands[2] = np.array(c, f"{'i' if sign else 'u'}{bits // 4}").view(f"u{bits // 4}")
        check("mad.wide", [x * y + z for x, y, z in zip(a, b, c, strict=True)], 3, 2 * bits)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_bits_and_shifts(bits: int) -> None:
    columns = integers(bits, 2)
    a, b = (np.array(column, f"u{bits // 8}") for column in columns)
    register = REGISTER[bits]
    for opcode, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
        assert np.array_equal(compute(f"{opcode}.b{bits}", register, a, b), function(a, b))
    assert np.array_equal(compute(f"not.b{bits}", register, a), ~a)
    amounts = [v % 80 for v in columns[1]]
    by = np.array(amounts, np.uint32)
    left = [(v << n) % 2**bits for v, n in zip(columns[0], amounts, strict=True)]
    right = [v >> n for v, n in zip(columns[0], amounts, strict=True)]
    arithmetic = [(signed(v, bits) >> n) % 2**bits for v, n in zip(columns[0], amounts, strict=True)]
    assert compute(f"shl.b{bits}", register, a, by).tolist() == left
    assert compute(f"shr.b{bits}", register, a, by).tolist() == right
    assert compute(f"shr.u{bits}", register, a, by).tolist() == right
    assert compute(f"shr.s{bits}", register, a, by).tolist() == arithmetic


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_fields_of_bits(kind: str) -> None:
    bits = int(kind[1:])
    (column,) = integers(bits, 1)
    positions, lengths = (RANDOM.integers(0, 80, len(column), np.uint32) for _ in range(2))
    wanted = []
    for value, position, length in zip(column, positions.tolist(), lengths.tolist(), strict=True):
        # As PTX ISA has it: bit by bit, with the sign beyond the field or beyond the register.
        last = min(position + length - 1, bits - 1)
        sign = value >> last & 1 if kind[0] == "s" and length else 0
        field = [value >> (position + i) & 1 if i < length and position + i < bits else sign for i in range(bits)]
        wanted.append(sum(bit << i for i, bit in enumerate(field)))
    got = compute(f"bfe.{kind}", REGISTER[bits], np.array(column, f"u{bits // 8}"), positions, lengths)
    assert got.tolist() == wanted


def test_permuted_bytes() -> None:
    a, b, selectors = (RANDOM.integers(0, 2**32, 200, np.uint32) for _ in range(3))
    wanted = []
    for x, y, selector in zip(a.tolist(), b.tolist(), selectors.tolist(), strict=True):
        source = x.to_bytes(4, "little") + y.to_bytes(4, "little")
        chosen = [selector >> 4 * i & 15 for i in range(4)]
        wanted.append(bytes(source[c] if c < 8 else (255 if source[c - 8] > 127 else 0) for c in chosen))
    assert compute("prmt.b32", "r", a, b, selectors).astype("<u4").tobytes() == b"".join(wanted)


@pytest.mark.parametrize("kind", ["u16", "s16", "b16", "u32", "s32", "b32", "u64", "s64", "b64"])
def test_comparisons_of_integers(kind: str) -> None:
    bits = int(kind[1:])
    columns = integers(bits, 2)
    a, b = ([signed(v, bits) if kind[0] == "s" else v for v in column] for column in columns)
    operands = [np.array(column, f"u{bits // 8}") for column in columns]
    for word, method in ORDER.items():
        if kind[0] != "b" or word in ("eq", "ne"):
            wanted = [getattr(x, method)(y) for x, y in zip(a, b, strict=True)]
            assert compute(f"setp.{word}.{kind}", "p", *operands).tolist() == wanted


def test_selection_and_predicates() -> None:
    a, b = (RANDOM.integers(0, 2**32, 64, np.uint32) for _ in range(2))
    p, q = (RANDOM.integers(0, 2, 64).astype(bool) for _ in range(2))
    wanted = [x if z else y for x, y, z in zip(a.tolist(), b.tolist(), p.tolist(), strict=True)]
    assert compute("selp.b32", "r", a, b, p).tolist() == wanted
    assert np.array_equal(compute("and.pred", "p", p, q), [x and y for x, y in zip(p, q, strict=True)])
    assert np.array_equal(compute("or.pred", "p", p, q), [x or y for x, y in zip(p, q, strict=True)])
    assert np.array_equal(compute("xor.pred", "p", p, q), [x != y for x, y in zip(p, q, strict=True)])
    assert np.array_equal(compute("not.pred", "p", p), [not x for x in p])
