"""Instructions as closures on a machine: what is decoded once runs for every program. Unknown words are errors."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tests.gpu import transfers
from tests.gpu.arithmetic import BOOL, PURE, UNSIGNED, Pure
from tests.gpu.machine import Code, EmulationError, Jump, Machine, Step, mask_of
from tests.gpu.parse import Instruction, Program, UnknownPtx
from tests.gpu.tensor_core import LDMATRIX, MMA

_FLOAT = re.compile(r"0[fF]([0-9A-Fa-f]{8})")
_SPECIAL = {"%ctaid": lambda m, axis: m.programs[:, axis], "%nctaid": lambda m, axis: np.array([m.grid[axis]])}


class Decoder:
    """Numbers the registers and constants of a program and decodes its instructions."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.numbers = {name: number for number, name in enumerate(program.registers)}
        self.widths = list(program.registers.values())
        self.constants: dict[int, NDArray] = {}

    def code(self, shared: int) -> Code:
        """All instructions.

        Raises:
            UnknownPtx: naming the first instruction that has an unknown opcode, modifier or operand.
        """
        steps = [self.step(i) for i in self.program.instructions]
        return Code(self.program, steps, self.constants, len(self.widths), shared)

    def register(self, name: str, bits: int) -> int:
        """The number of a register of a width."""
        number = self.numbers.get(name)
        if number is None or self.widths[number] != bits:
            raise UnknownPtx(f"operand {name!r} is no register of {bits} bits")
        return number

    def destination(self, name: str, bits: int) -> tuple[int, np.dtype]:
        """The number and type of a register that a value of some bits is loaded into: as wide or wider."""
        number = self.numbers.get(name)
        if number is None or self.widths[number] < bits:
            raise UnknownPtx(f"operand {name!r} is no register of {bits} bits or more")
        return number, UNSIGNED[self.widths[number]]

    def operand(self, text: str | tuple[str, ...], bits: int) -> int:
        """The number of a register or constant."""
        if isinstance(text, tuple):
            raise UnknownPtx(f"operand {text} where one register is wanted")
        if text.startswith("%"):
            return self.register(text, bits)
        return self.constant(text, bits)

    def constant(self, text: str, bits: int) -> int:
        """A constant's number: it is a register that is never written."""
        if match := _FLOAT.fullmatch(text):
            value = int(match.group(1), 16)
        elif text == "global_smem":
            value = 0
        elif re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", text):
            value = int(text, 0)
        else:
            raise UnknownPtx(f"operand {text!r}")
        kept = np.array([value != 0]) if bits == 1 else np.array([value % (1 << bits)]).astype(UNSIGNED[bits])
        self.widths.append(bits)
        self.constants[len(self.widths) - 1] = kept
        return len(self.widths) - 1

    def step(self, instruction: Instruction) -> Step:
        """The closure of an instruction."""
        try:
            return self._step(instruction)
        except UnknownPtx as error:
            raise UnknownPtx(f"{self.program.name}: {error}: {instruction}") from None

    def _step(self, i: Instruction) -> Step:
        guard = None if i.predicate is None else self.register(i.predicate, 1)
        opcode, family = i.opcode, i.opcode.split(".")[0]
        if opcode in PURE:
            return self._pure(i, PURE[opcode], guard)
        if opcode in MMA:
            return transfers.mma(self, i, guard)
        if opcode in LDMATRIX:
            return transfers.ldmatrix(self, i, guard)
        special = {"mov": self._mov, "bra": self._branch, "ret": self._return, "bar": self._barrier}
        if family in special:
            return special[family](i, guard)
        if family in transfers.FAMILIES:
            return transfers.FAMILIES[family](self, i, guard)
        if family in ("atom", "red"):
            raise UnknownPtx("atomics have no fixed order, so no kernel here may use them")
        raise UnknownPtx(f"unknown opcode {opcode}")

    def _pure(self, i: Instruction, pure: Pure, guard: int | None) -> Step:
        if len(i.operands) != 1 + len(pure.operands):
            raise UnknownPtx(f"{len(i.operands)} operands, wanted {1 + len(pure.operands)}")
        bits = [1 if t is BOOL else t.itemsize * 8 for t in (pure.result, *pure.operands)]
        to = self.register(str(i.operands[0]), bits[0])
        sources = [self.operand(o, b) for o, b in zip(i.operands[1:], bits[1:], strict=True)]
        kept = np.dtype(bool) if bits[0] == 1 else UNSIGNED[bits[0]]
        return _pure_step(pure, to, sources, kept, guard, i.negated)

    def _mov(self, i: Instruction, guard: int | None) -> Step:
        kind = re.fullmatch(r"mov\.(?:[bsu](16|32|64)|(pred)|f(32))", i.opcode)
        if not kind or len(i.operands) != 2:
            raise UnknownPtx(f"unknown opcode {i.opcode}")
        bits = 1 if kind.group(2) else int(kind.group(1) or kind.group(3))
        to, source = i.operands
        if isinstance(to, tuple) or isinstance(source, tuple):
            return self._mov_parts(to, source, bits, guard, i.negated)
        number = self.register(to, bits)
        if value := _special(source):
            if bits != 32:
                raise UnknownPtx(f"{source} is read into {bits} bits")
            return lambda m: m.write(number, value(m), mask_of(m, guard, i.negated))
        origin = self.operand(source, bits)
        return lambda m: m.write(number, m.read(origin), mask_of(m, guard, i.negated))

    def _mov_parts(self, to: str | tuple, source: str | tuple, bits: int, guard: int | None, negated: bool) -> Step:
        """A register from its parts, or parts of a register, the lowest first."""
        parts = source if isinstance(source, tuple) else to
        if (
            isinstance(source, tuple) == isinstance(to, tuple)
            or bits % len(parts)
            or bits // len(parts) not in (16, 32)
        ):
            raise UnknownPtx("mov between vectors")
        narrow = bits // len(parts)
        kind, whole = UNSIGNED[narrow], UNSIGNED[bits]
        if isinstance(source, tuple):
            number, origins = self.register(str(to), bits), [self.operand(p, narrow) for p in parts]

            def join(m: Machine) -> None:
                value = m.read(origins[-1]).astype(whole)
                for origin in reversed(origins[:-1]):
                    value = (value << whole.type(narrow)) | m.read(origin)
                m.write(number, value, mask_of(m, guard, negated))

            return join
        origin = self.operand(source, bits)
        numbers = [None if p == "_" else self.register(p, narrow) for p in parts]

        def take_apart(m: Machine) -> None:
            mask, value = mask_of(m, guard, negated), m.read(origin)
            for place, number in enumerate(numbers):
                if number is not None:
                    m.write(number, (value >> whole.type(narrow * place)).astype(kind), mask)

        return take_apart

    def _branch(self, i: Instruction, guard: int | None) -> Step:
        if i.opcode not in ("bra", "bra.uni") or i.operands[0] not in self.program.labels:
            raise UnknownPtx(f"unknown branch {i.opcode}")
        target = self.program.labels[str(i.operands[0])]
        return lambda m: Jump(target, _guard(m, guard, i.negated))

    def _return(self, i: Instruction, guard: int | None) -> Step:
        if i.opcode != "ret":
            raise UnknownPtx(f"unknown opcode {i.opcode}")
        end = len(self.program.instructions)
        return lambda m: Jump(end, _guard(m, guard, i.negated))

    def _barrier(self, i: Instruction, guard: int | None) -> Step:
        if i.opcode == "bar.warp.sync":
            return lambda m: None
        if i.opcode != "bar.sync" or i.operands != ("0",) or guard is not None:
            raise UnknownPtx(f"unknown barrier {i.opcode}")
        end = len(self.program.instructions)

        def barrier(m: Machine) -> None:
            if m.places is not None and not (m.active | (m.places == end)).all():
                raise EmulationError("a barrier that not all threads of the program reach")
            m.shared.barrier()
            m.barriers += 1

        return barrier


def _guard(m: Machine, guard: int | None, negated: bool) -> NDArray[np.bool_] | None:
    if guard is None:
        return None
    value = m.read(guard)
    return ~value if negated else value


def _special(name: str) -> Callable[[Machine], NDArray] | None:
    """What a special register holds."""
    stem, _, axis = name.partition(".")
    if axis in ("x", "y", "z") and axis:
        number = "xyz".index(axis)
        if stem in _SPECIAL:
            return lambda m: _by_lane(m, _SPECIAL[stem](m, number).astype(np.uint32))
        if stem == "%tid":
            return lambda m: m.thread if number == 0 else np.zeros(1, np.uint32)
        if stem == "%ntid":
            return lambda m: np.array([m.code.program.threads if number == 0 else 1], np.uint32)
    if name == "%laneid":
        return lambda m: m.thread & np.uint32(31)
    return None


def _by_lane(m: Machine, values: NDArray) -> NDArray:
    """One value a program as one a lane, or as a single value where all are the same."""
    return values[:1] if (values == values[0]).all() else values[m.program]


def _pure_step(pure: Pure, to: int, sources: list[int], kept: np.dtype, guard: int | None, negated: bool) -> Step:
    compute, kinds, result = pure.compute, pure.operands, pure.result
    pairs = list(zip(sources, kinds, strict=True))

    def step(m: Machine) -> None:
        mask = mask_of(m, guard, negated) if guard is not None or m.active is not None else None
        value = compute(*[m.read(s).view(kind) for s, kind in pairs])
        value = value.astype(result, copy=False).view(kept)
        if mask is None:
            m.registers[to] = value
        else:
            m.write(to, value, mask)

    return step
