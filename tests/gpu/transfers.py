"""Instructions that move data: loads, stores, asynchronous copies, shuffles, and fragments of matrices."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tests.gpu.arithmetic import UNSIGNED
from tests.gpu.machine import EmulationError, Machine, Step, mask_of
from tests.gpu.parse import Instruction, UnknownPtx
from tests.gpu.tensor_core import LDMATRIX, MMA, spread_rows

if TYPE_CHECKING:
    from tests.gpu.decode import Decoder

# Hints to caches change nothing that is emulated.
_HINTS = r"(?:\.(?:nc|ca|cg|cs|L1::evict_(?:first|last|normal)|L1::no_allocate|L2::(?:64|128|256)B))*"
_ACCESS = re.compile(rf"(ld|st)\.(global|shared){_HINTS}(?:\.v([248]))?\.([bsuf])(8|16|32|64)")
_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global(?:\.L2::(?:64|128|256)B)?")
_ADDRESS = re.compile(r"\[(%?\w+)(?:\+(-?\w+))?\]")


def _address(decoder: Decoder, text: str | tuple, bits: int) -> Callable[[Machine], NDArray]:
    match = _ADDRESS.fullmatch(str(text))
    if not match:
        raise UnknownPtx(f"address {text}")
    base = decoder.operand(match.group(1), bits)
    offset = np.array([int(match.group(2) or "0", 0) % (1 << bits)]).astype(UNSIGNED[bits])
    if not offset[0]:
        return lambda m: m.lane_values(base)

    def address(m: Machine) -> NDArray:
        at = m.read(base) + offset
        return at if len(at) == m.lanes else np.broadcast_to(at, (m.lanes,))

    return address


def _chosen(m: Machine, guard: int | None, negated: bool) -> NDArray[np.int64] | slice:
    """The lanes that take part."""
    mask = mask_of(m, guard, negated)
    return slice(None) if mask is None else np.flatnonzero(np.broadcast_to(mask, (m.lanes,)))


def _load_parameter(decoder: Decoder, i: Instruction, guard: int | None) -> Step:
    kind = re.fullmatch(r"ld\.param\.([bsuf])(8|16|32|64)", i.opcode)
    name = re.fullmatch(r"\[(\w+)\]", str(i.operands[1]))
    if not kind or not name or guard is not None:
        raise UnknownPtx(f"unknown opcode {i.opcode}")
    to, kept = decoder.destination(str(i.operands[0]), int(kind.group(2)))
    narrow = np.dtype(f"{'i' if kind.group(1) == 's' else 'u'}{int(kind.group(2)) // 8}")

    def load(m: Machine) -> None:
        value = np.array([m.parameters[name.group(1)]], np.uint64).astype(narrow)
        m.write(to, value.astype(kept), m.active)

    return load


def access(decoder: Decoder, i: Instruction, guard: int | None) -> Step:
    """``ld`` and ``st`` of global and shared memory, of one to eight elements."""
    if i.opcode.startswith("ld.param"):
        return _load_parameter(decoder, i, guard)
    match = _ACCESS.fullmatch(i.opcode)
    if not match or len(i.operands) != 2:
        raise UnknownPtx(f"unknown opcode {i.opcode}")
    kind, space, count, sign, bits = match.group(1), match.group(2), int(match.group(3) or 1), *match.groups()[3:]
    where, what = i.operands if kind == "st" else reversed(i.operands)
    names = what if isinstance(what, tuple) else (what,)
    width = max(16, int(bits))
    if len(names) != count or int(bits) * count > 128:
        raise UnknownPtx(f"{len(names)} registers, wanted {count}")
    element = np.dtype(f"{'i' if sign == 's' else 'u'}{int(bits) // 8}")
    at = _address(decoder, where, 64 if space == "global" else 32)
    shared = space == "shared"
    if kind == "st":
        return _store(i, guard, at, [decoder.operand(n, width) for n in names], element, shared)
    return _load(i, guard, at, [decoder.destination(n, width) for n in names], element, shared)


def _load(
    i: Instruction, guard: int | None, at: Callable, to: list[tuple[int, np.dtype]], element: np.dtype, shared: bool
) -> Step:
    size, text = element.itemsize * len(to), str(i)

    def load(m: Machine) -> None:
        lanes = _chosen(m, guard, i.negated)
        addresses = at(m)[lanes]
        if not len(addresses):
            return
        if shared:
            rows = m.shared.load(m.program[lanes], m.warp[lanes], addresses, size, element, i)
        else:
            rows = m.memory.load(addresses, size, element, m.threads(lanes), text)
        for place, (number, kept) in enumerate(to):
            value = rows[:, place].astype(kept)
            if not isinstance(lanes, slice):
                old = m.registers[number]
                full = np.full(m.lanes, -1).astype(kept) if old is None else np.broadcast_to(old, m.lanes).copy()
                full[lanes] = value
                value = full
            m.registers[number] = value

    return load


def _store(i: Instruction, guard: int | None, at: Callable, what: list[int], element: np.dtype, shared: bool) -> Step:
    text = str(i)

    def store(m: Machine) -> None:
        lanes = _chosen(m, guard, i.negated)
        addresses = at(m)[lanes]
        if not len(addresses):
            return
        rows = np.stack([m.lane_values(r)[lanes].astype(element) for r in what], 1)
        if shared:
            m.shared.store(m.program[lanes], m.warp[lanes], addresses, rows, i)
        else:
            m.memory.store(addresses, rows, m.threads(lanes), text)

    return store


def copy(decoder: Decoder, i: Instruction, guard: int | None) -> Step:
    """``cp.async``: copies that start, groups of them, and waits."""
    if i.opcode == "cp.async.commit_group":
        return lambda m: _together(m, guard) or m.shared.commit()
    if i.opcode == "cp.async.wait_group":
        pending = int(str(i.operands[0]), 0)
        return lambda m: _together(m, guard) or m.shared.wait(pending)
    if i.opcode == "cp.async.wait_all":
        return lambda m: _together(m, guard) or m.shared.wait(None)
    if not _COPY.fullmatch(i.opcode) or len(i.operands) not in (3, 4):
        raise UnknownPtx(f"unknown opcode {i.opcode}")
    to, source = _address(decoder, i.operands[0], 32), _address(decoder, i.operands[1], 64)
    size = int(str(i.operands[2]), 0)
    if size not in (4, 8, 16):
        raise UnknownPtx(f"a copy of {size} bytes")
    used = decoder.operand(i.operands[3], 32) if len(i.operands) == 4 else decoder.constant(str(size), 32)

    def start(m: Machine) -> None:
        lanes = _chosen(m, guard, i.negated)
        places, addresses, sizes = to(m)[lanes], source(m)[lanes], m.lane_values(used)[lanes]
        if not len(places):
            return
        if not ((sizes == 0) | (sizes == size)).all():
            raise EmulationError("a copy of a part of its size")
        rows = np.zeros((len(places), size), np.uint8)
        full = sizes == size
        who = m.threads(lanes).chosen(np.flatnonzero(full))
        rows[full] = m.memory.load(addresses[full], size, np.dtype(np.uint8), who, str(i))
        m.shared.copy(m.program[lanes], m.warp[lanes], places, rows, i)

    return start


def _together(m: Machine, guard: int | None) -> None:
    """Warp-wide instructions and waits are known only for threads that run together."""
    if guard is not None or m.active is not None:
        raise EmulationError("executed by some threads only")


def shuffle(decoder: Decoder, i: Instruction, guard: int | None) -> Step:
    """``shfl.sync``: each lane reads a register of another lane of its warp."""
    mode = re.fullmatch(r"shfl\.sync\.(up|down|bfly|idx)\.b32", i.opcode)
    if not mode or len(i.operands) != 5 or i.operands[4] not in ("-1", "0xffffffff"):
        raise UnknownPtx(f"unknown opcode {i.opcode}")
    name, _, flag = str(i.operands[0]).partition("|")
    to, valid = decoder.register(name, 32), decoder.register(flag, 1) if flag else None
    value, by, clamp = (decoder.operand(o, 32) for o in i.operands[1:4])

    def step(m: Machine) -> None:
        _together(m, guard)
        lane = np.arange(m.lanes) % 32
        distance, limits = m.read(by).astype(np.int64) & 31, m.read(clamp).astype(np.int64)
        segment, last = (limits >> 8) & 31, limits & 31
        lowest = lane & segment
        highest = lowest | (last & ~segment)
        if mode.group(1) == "up":
            source = lane - distance
            inside = source >= highest
        else:
            moves = {"down": lane + distance, "bfly": lane ^ distance, "idx": lowest | (distance & ~segment)}
            source = moves[mode.group(1)]
            inside = source <= highest
        source = np.where(inside, source, lane) + np.arange(m.lanes) - lane
        m.registers[to] = m.lane_values(value)[source]
        if valid is not None:
            m.registers[valid] = inside

    return step


def mma(decoder: Decoder, i: Instruction, guard: int | None) -> Step:
    """``mma.sync``."""
    product = MMA[i.opcode]
    counts = (4, product.a.registers, product.b.registers, 4)
    if [len(o) if isinstance(o, tuple) else 0 for o in i.operands] != list(counts):
        raise UnknownPtx(f"wanted fragments of {counts} registers")
    to = [decoder.register(r, 32) for r in i.operands[0]]
    a, b, c = ([decoder.operand(r, 32) for r in o] for o in i.operands[1:])

    def step(m: Machine) -> None:
        _together(m, guard)
        results = product.run(*([m.lane_values(r) for r in part] for part in (a, b, c)))
        for number, value in zip(to, results, strict=True):
            m.registers[number] = value

    return step


def ldmatrix(decoder: Decoder, i: Instruction, guard: int | None) -> Step:
    """``ldmatrix``: 8 x 8 matrices of halves, whose rows lie where 8 lanes each say."""
    count, transposed = LDMATRIX[i.opcode]
    to = [decoder.register(r, 32) for r in (i.operands[0] if isinstance(i.operands[0], tuple) else (i.operands[0],))]
    at = _address(decoder, i.operands[1], 32)
    if len(to) != count:
        raise UnknownPtx(f"wanted {count} registers")

    def step(m: Machine) -> None:
        _together(m, guard)
        addresses = at(m).reshape(-1, 32)
        for place, number in enumerate(to):
            lanes = (np.arange(0, m.lanes, 32)[:, None] + np.arange(8 * place, 8 * place + 8)).reshape(-1)
            rows = addresses[:, 8 * place : 8 * place + 8].reshape(-1)
            halves = m.shared.load(m.program[lanes], m.warp[lanes], rows, 16, np.dtype(np.uint16), i)
            m.registers[number] = spread_rows(halves.reshape(-1, 8, 8), transposed)

    return step


FAMILIES: dict[str, Callable[[Decoder, Instruction, int | None], Step]] = {
    "ld": access,
    "st": access,
    "cp": copy,
    "shfl": shuffle,
}
