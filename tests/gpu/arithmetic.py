"""The table of opcodes that compute a register from registers. Each name stands here with its modifiers, or is unknown."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu import floats

BOOL, F32 = np.dtype(bool), np.dtype(np.float32)
UNSIGNED = {16: np.dtype(np.uint16), 32: np.dtype(np.uint32), 64: np.dtype(np.uint64)}
INTEGERS = {f"{sign}{bits}": np.dtype(f"{name}{bits}") for bits in (16, 32, 64) for sign, name in (("u", "uint"), ("s", "int"))}  # fmt: skip
BITS = {f"b{bits}": kind for bits, kind in UNSIGNED.items()}


@dataclass(frozen=True)
class Pure:
    """An opcode without side effects: the type of its result and of its operands, and what computes it."""

    result: np.dtype
    operands: tuple[np.dtype, ...]
    compute: Callable[..., NDArray]


PURE: dict[str, Pure] = {}


def _define(name: str, result: np.dtype, operands: tuple[np.dtype, ...], compute: Callable[..., Any]) -> None:
    assert name not in PURE, name
    PURE[name] = Pure(result, operands, compute)


def wide(kind: np.dtype) -> np.dtype:
    """The integer of twice the width."""
    return np.dtype(f"{'int' if kind.kind == 'i' else 'uint'}{kind.itemsize * 16}")


def _high(kind: np.dtype) -> Callable[[NDArray, NDArray], NDArray]:
    def narrow(a: NDArray, b: NDArray) -> NDArray:
        return ((a.astype(wide(kind)) * b) >> wide(kind).type(kind.itemsize * 8)).astype(kind)

    def of_64_bits(a: NDArray, b: NDArray) -> NDArray:
        products = [(int(x) * int(y)) >> 64 for x, y in zip(*np.broadcast_arrays(a, b), strict=True)]
        return np.array([p & 0xFFFFFFFFFFFFFFFF for p in products], np.uint64).view(kind)

    return of_64_bits if kind.itemsize == 8 else narrow


def _quotient(a: NDArray, b: NDArray) -> NDArray:
    """Truncated division; by zero all bits are set, which PTX leaves open."""
    safe = np.where(b == 0, 1, b).astype(b.dtype)
    floor = a // safe
    truncated = floor + ((a - floor * safe != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, np.invert(np.zeros_like(a)), truncated)


def _remainder(a: NDArray, b: NDArray) -> NDArray:
    return np.where(b == 0, a, a - _quotient(a, b) * b)


def _shift_left(a: NDArray, amount: NDArray) -> NDArray:
    bits = a.dtype.itemsize * 8
    shifted = a << np.minimum(amount, bits - 1).astype(a.dtype)
    return np.where(amount >= bits, np.zeros_like(shifted), shifted)


def _shift_right(a: NDArray, amount: NDArray) -> NDArray:
    bits = a.dtype.itemsize * 8
    shifted = a >> np.minimum(amount, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(amount >= bits, np.zeros_like(shifted), shifted)


def _extract(a: NDArray, position: NDArray, length: NDArray) -> NDArray:
    """``bfe``: a field of bits, with the sign of its topmost bit for signed types."""
    bits = a.dtype.itemsize * 8
    position, length = (np.minimum(v & np.uint32(0xFF), bits).astype(np.int64) for v in (position, length))
    if a.dtype.kind == "i":  # beyond the register there are copies of its sign
        position = np.minimum(position, bits - 1)
    length = np.minimum(length, bits - position)
    raised = _shift_left(a, (bits - position - length).astype(np.uint32))
    field = _shift_right(raised, (bits - length).astype(np.uint32))
    return np.where(length == 0, np.zeros_like(field), field)


def _permute(a: NDArray, b: NDArray, selector: NDArray) -> NDArray:
    """``prmt``: four bytes chosen out of the eight of two registers; bit 3 of a choice repeats the byte's sign."""
    both = (b.astype(np.uint64) << np.uint64(32)) | a
    result = np.zeros(np.broadcast_shapes(a.shape, b.shape, selector.shape), np.uint32)
    for place in range(4):
        choice = (selector >> np.uint32(4 * place)) & np.uint32(0xF)
        byte = ((both >> ((choice & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(0xFF)).astype(
            np.uint32
        )
        byte = np.where(choice & np.uint32(8), (byte >> np.uint32(7)) * np.uint32(0xFF), byte)
        result |= byte << np.uint32(8 * place)
    return result


def _define_integers() -> None:
    for name, kind in INTEGERS.items():
        two = (kind, kind)
        _define(f"add.{name}", kind, two, operator.add)
        _define(f"sub.{name}", kind, two, operator.sub)
        _define(f"mul.lo.{name}", kind, two, operator.mul)
        _define(f"mad.lo.{name}", kind, (kind, kind, kind), lambda a, b, c: a * b + c)
        _define(f"mul.hi.{name}", kind, two, _high(kind))
        _define(f"div.{name}", kind, two, _quotient)
        _define(f"rem.{name}", kind, two, _remainder)
        _define(f"min.{name}", kind, two, np.minimum)
        _define(f"max.{name}", kind, two, np.maximum)
        if kind.itemsize < 8:
            to = wide(kind)
            _define(f"mul.wide.{name}", to, two, lambda a, b, to=to: a.astype(to) * b)
            _define(f"mad.wide.{name}", to, (kind, kind, to), lambda a, b, c, to=to: a.astype(to) * b + c)
        if kind.itemsize > 2:
            _define(f"bfe.{name}", kind, (kind, UNSIGNED[32], UNSIGNED[32]), _extract)
        if kind.kind == "i":
            _define(f"neg.{name}", kind, (kind,), operator.neg)
            _define(f"abs.{name}", kind, (kind,), np.abs)
        _define(f"shr.{name}", kind, (kind, UNSIGNED[32]), _shift_right)


def _define_bits() -> None:
    for name, kind in {**BITS, "pred": BOOL}.items():
        for word, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
            _define(f"{word}.{name}", kind, (kind, kind), function)
        _define(f"not.{name}", kind, (kind,), np.invert)
    for name, kind in BITS.items():
        _define(f"shl.{name}", kind, (kind, UNSIGNED[32]), _shift_left)
        _define(f"shr.{name}", kind, (kind, UNSIGNED[32]), _shift_right)
    for name, kind in {**BITS, **INTEGERS, "f32": F32}.items():
        _define(f"selp.{name}", kind, (kind, kind, BOOL), lambda a, b, p: np.where(p, a, b))
    _define("prmt.b32", UNSIGNED[32], (UNSIGNED[32],) * 3, _permute)


def _define_floats() -> None:
    one, two, three = (F32,), (F32, F32), (F32, F32, F32)
    for word, function in (("add", operator.add), ("sub", operator.sub), ("mul", operator.mul)):
        _define(f"{word}.f32", F32, two, function)
        _define(f"{word}.rn.f32", F32, two, function)
    _define("fma.rn.f32", F32, three, floats.fma)
    _define("min.f32", F32, two, floats.minimum)
    _define("max.f32", F32, two, floats.maximum)
    _define("min.NaN.f32", F32, two, floats.minimum_nan)
    _define("max.NaN.f32", F32, two, floats.maximum_nan)
    # The signs are bits: neg and abs of NaN change nothing else.
    _define("neg.f32", F32, one, np.negative)
    _define("abs.f32", F32, one, np.abs)
    for name in ("div.full", "div.rn"):
        _define(f"{name}.f32", F32, two, floats.divide)
    for name in ("rcp.rn", "rcp.approx"):
        _define(f"{name}.f32", F32, one, floats.reciprocal)
    for name in ("sqrt.rn", "sqrt.approx"):
        _define(f"{name}.f32", F32, one, np.sqrt)
    _define("rsqrt.approx.f32", F32, one, floats.reciprocal_root)
    _define("ex2.approx.f32", F32, one, lambda v: floats.rounded(np.exp2, v))
    _define("lg2.approx.f32", F32, one, lambda v: floats.rounded(np.log2, v))
    for name in ("rcp.approx", "sqrt.approx", "rsqrt.approx", "ex2.approx", "lg2.approx"):
        plain = PURE[f"{name}.f32"].compute
        _define(f"{name}.ftz.f32", F32, one, lambda v, plain=plain: floats.flush(plain(floats.flush(v))))


def _define_halves() -> None:
    """Arithmetic of 16-bit floats: float32 has bits enough that rounding its result once more is harmless."""
    half, word = UNSIGNED[16], UNSIGNED[32]
    kinds = {
        "f16": (floats.half_to_float, floats.float_to_half),
        "bf16": (floats.bfloat_to_float, floats.float_to_bfloat),
    }
    for kind, (widen, narrow) in kinds.items():
        functions: dict[str, tuple[int, Callable[..., NDArray]]] = {"fma.rn": (3, floats.fma_halves(widen, narrow))}
        if kind == "f16":
            for name, f in (("add", operator.add), ("sub", operator.sub), ("mul", operator.mul)):
                two = lambda a, b, f=f, widen=widen, narrow=narrow: narrow(f(widen(a), widen(b)))  # noqa: E731
                functions |= {name: (2, two), f"{name}.rn": (2, two)}
        for name, (count, function) in functions.items():
            _define(f"{name}.{kind}", half, (half,) * count, function)
            _define(f"{name}.{kind}x2", word, (word,) * count, lambda *v, f=function: _by_halves(f, *v))


def _by_halves(function: Callable[..., NDArray], *words: NDArray) -> NDArray:
    low, high = ([(w >> np.uint32(shift)).astype(np.uint16) for w in words] for shift in (0, 16))
    return _pack(function(*high), function(*low))


def _define_comparisons() -> None:
    ordered = {"eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    for name, kind in {**INTEGERS, **BITS}.items():
        for word, function in {**ordered, "ne": np.not_equal}.items():
            if name[0] != "b" or word in ("eq", "ne"):
                _define(f"setp.{word}.{name}", BOOL, (kind, kind), function)
    two = (F32, F32)
    for word, function in ordered.items():
        _define(f"setp.{word}.f32", BOOL, two, function)
        _define(f"setp.{word}u.f32", BOOL, two, lambda a, b, f=function: f(a, b) | np.isnan(a) | np.isnan(b))
    _define("setp.ne.f32", BOOL, two, lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b))
    _define("setp.neu.f32", BOOL, two, np.not_equal)
    _define("setp.num.f32", BOOL, two, lambda a, b: ~(np.isnan(a) | np.isnan(b)))
    _define("setp.nan.f32", BOOL, two, lambda a, b: np.isnan(a) | np.isnan(b))


def _pack(high: NDArray, low: NDArray) -> NDArray:
    return (high.astype(np.uint32) << np.uint32(16)) | low


def _define_conversions() -> None:
    half, word = UNSIGNED[16], UNSIGNED[32]
    _define("cvt.f32.f16", F32, (half,), floats.half_to_float)
    _define("cvt.f32.bf16", F32, (half,), floats.bfloat_to_float)
    for name, function in (("f16", floats.float_to_half), ("bf16", floats.float_to_bfloat)):
        _define(f"cvt.rn.{name}.f32", half, (F32,), function)
        _define(f"cvt.rn.{name}x2.f32", word, (F32, F32), lambda a, b, f=function: _pack(f(a), f(b)))
    _define("cvt.rna.tf32.f32", F32, (F32,), floats.float_to_tf32)
    roundings = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    for mode, rounding in roundings.items():
        _define(f"cvt.{mode}.f32.f32", F32, (F32,), rounding)
        for name, kind in INTEGERS.items():
            convert = lambda v, kind=kind, rounding=rounding: floats.to_integer(v, kind, rounding)  # noqa: E731
            _define(f"cvt.{mode}.{name}.f32", kind, (F32,), convert)
    narrow = {"u8": (half, np.uint8), "s8": (half, np.int8)}
    sources = {**{name: (kind, kind.type) for name, kind in INTEGERS.items()}, **narrow}
    for name, (register, kind) in sources.items():
        # A value of 8 bits sits in the lower half of a register of 16.
        _define(f"cvt.rn.f32.{name}", F32, (register,), lambda v, kind=kind: v.astype(kind).astype(np.float32))
        for to_name, to in INTEGERS.items():
            if name != to_name:
                _define(f"cvt.{to_name}.{name}", to, (register,), lambda v, kind=kind, to=to: v.astype(kind).astype(to))


for _part in (_define_integers, _define_bits, _define_floats, _define_halves, _define_comparisons, _define_conversions):
    _part()
