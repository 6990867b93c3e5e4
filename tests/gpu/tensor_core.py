"""Warp-wide instructions on matrices: ``mma.sync`` and ``ldmatrix``, with the layouts of PTX ISA 9.7.14."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.gpu import floats

LANE = np.arange(32)
GROUP, MEMBER = LANE // 4, LANE % 4


@dataclass(frozen=True)
class Fragment:
    """Where the elements of a matrix are: [rows, columns] of indices into a warp's [registers, 32 lanes, elements]."""

    registers: int
    source: NDArray[np.int64]


def _fragment(rows: int, columns: int, registers: int, elements: int, place: Callable) -> Fragment:
    source = np.full((rows, columns), -1)
    for register in range(registers):
        for element in range(elements):
            row, column = place(register, element)
            source[row, column] = (register * 32 + LANE) * elements + element
    assert (source >= 0).all()
    return Fragment(registers, source)


def _a_16_bits(depth: int) -> Fragment:
    return _fragment(16, depth, depth // 4, 2, lambda r, e: (GROUP + 8 * (r % 2), MEMBER * 2 + e + 8 * (r // 2)))


def _b_16_bits(depth: int) -> Fragment:
    return _fragment(depth, 8, depth // 8, 2, lambda r, e: (MEMBER * 2 + e + 8 * r, GROUP))


A_TF32 = _fragment(16, 8, 4, 1, lambda r, e: (GROUP + 8 * (r % 2), MEMBER + 4 * (r // 2)))
B_TF32 = _fragment(8, 8, 2, 1, lambda r, e: (MEMBER + 4 * r, GROUP))
ACCUMULATOR = _fragment(16, 8, 4, 1, lambda r, e: (GROUP + 8 * (r // 2), MEMBER * 2 + r % 2))
_TO_REGISTERS = np.argsort(ACCUMULATOR.source.reshape(-1))


def _of_halves(convert: Callable[[NDArray], NDArray]) -> Callable[[NDArray], NDArray]:
    return lambda words: convert(words.view(np.uint16))


def _of_tf32(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The tensor core takes no notice of the 13 lowest bits."""
    return (words & np.uint32(0xFFFFE000)).view(np.float32)


@dataclass(frozen=True)
class Mma:
    """A product of fragments: layouts of A and B, and how their words become floats."""

    a: Fragment
    b: Fragment
    decode: Callable[[NDArray], NDArray]

    def run(self, a: list[NDArray], b: list[NDArray], c: list[NDArray]) -> list[NDArray]:
        """D = A B + C in float32; each register as the words of all lanes of whole warps."""
        product = np.matmul(_matrices(a, self.a, self.decode), _matrices(b, self.b, self.decode))
        total = product + _matrices(c, ACCUMULATOR, lambda words: words.view(np.float32))
        warps = len(total)
        words = total.reshape(warps, 128)[:, _TO_REGISTERS].view(np.uint32).reshape(warps, 4, 32)
        return [np.ascontiguousarray(words[:, r]).reshape(-1) for r in range(4)]


def _matrices(registers: list[NDArray], fragment: Fragment, decode: Callable[[NDArray], NDArray]) -> NDArray:
    assert len(registers) == fragment.registers
    words = np.stack([r.reshape(-1, 32) for r in registers], 1)
    values = decode(words.reshape(len(words), -1))
    return values[:, fragment.source]


_TYPES = {"f16": _of_halves(floats.half_to_float), "bf16": _of_halves(floats.bfloat_to_float)}
MMA = {
    f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32": Mma(_a_16_bits(depth), _b_16_bits(depth), decode)
    for kind, decode in _TYPES.items()
    for depth in (8, 16)
} | {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32": Mma(A_TF32, B_TF32, _of_tf32)}
LDMATRIX = {
    f"ldmatrix.sync.aligned.m8n8.x{count}{suffix}.shared.b16": (count, transposed)
    for count in (1, 2, 4)
    for suffix, transposed in (("", False), (".trans", True))
}


def spread_rows(rows: NDArray[np.uint16], transposed: bool) -> NDArray[np.uint32]:
    """Matrices of 8 x 8 halves [warps, 8, 8] as one register of each lane: lane i holds elements 2i and 2i + 1."""
    matrix = rows.swapaxes(1, 2) if transposed else rows
    return np.ascontiguousarray(matrix).view(np.uint32).reshape(-1)
