"""What a compiled kernel consists of: registers, spills, memory, the width of its accesses, and how many fit on a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.gpu.compile import Compiled, require_triton


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of a streaming multiprocessor (CUDA programming guide, technical specifications per compute capability)."""

    registers: int
    shared: int
    threads: int
    programs: int


RESERVED = 1 << 10
"""Shared memory that the system takes of each program."""
MULTIPROCESSORS = {
    80: Multiprocessor(65536, 164 << 10, 2048, 32),
    86: Multiprocessor(65536, 100 << 10, 1536, 16),
    89: Multiprocessor(65536, 100 << 10, 1536, 24),
    90: Multiprocessor(65536, 228 << 10, 2048, 32),
    100: Multiprocessor(65536, 228 << 10, 2048, 32),
    120: Multiprocessor(65536, 100 << 10, 1536, 24),
}
TENSOR_CORE = {80: r"HMMA", 86: r"HMMA", 89: r"HMMA", 90: r"HGMMA|HMMA", 100: r"UTC\w*MMA|HMMA", 120: r"HMMA"}
"""The opcodes of 16-bit matrix products; those of new architectures take 64 rows, and fewer go the older way."""


def occupancy(architecture: int, registers: int, shared: int, threads: int) -> tuple[int, float, str]:
    """Programs that a multiprocessor holds, the part of its threads that they are, and what stops more.

    Registers are given to warps in units of 256, shared memory to programs in units of 128 bytes.
    """
    of = MULTIPROCESSORS[architecture]
    a_warp = -(-registers * 32 // 256) * 256
    limits = {
        "registers": of.registers // a_warp // (threads // 32) if a_warp else of.programs,
        "shared memory": of.shared // (-(-(shared + RESERVED) // 128) * 128),
        "threads": of.threads // threads,
        "programs": of.programs,
    }
    limit = min(limits, key=lambda name: limits[name])
    return limits[limit], limits[limit] * threads / of.threads, limit


@dataclass(frozen=True)
class Artefact:
    """A kernel compiled for an NVIDIA architecture."""

    kernel: str
    architecture: int
    threads: int
    registers: int
    stack: int
    local: int
    shared: int
    programs: int
    occupancy: float
    limit: str
    opcodes: Counter[str] = field(repr=False)
    pending: int
    """Bytes that a thread has asked for, at most, before it waits for the first of them."""
    loops: tuple[int, ...]
    """Instructions of each loop, one inside of another counted in both."""

    def count(self, pattern: str) -> int:
        """Instructions whose opcode starts with a pattern."""
        return sum(count for opcode, count in self.opcodes.items() if re.match(pattern, opcode))

    @property
    def instructions(self) -> int:
        """Instructions in the code, without what fills its end."""
        return sum(self.opcodes.values())

    @property
    def wide_loads(self) -> int:
        """Loads from global memory of 128 bits, copies to shared memory included."""
        return self.count(r"(LDG|LDGSTS)\.\S*128$")

    @property
    def narrow_loads(self) -> int:
        """Loads from global memory of fewer bits."""
        return self.count(r"LDG(STS)?\b") - self.wide_loads

    @property
    def wide_stores(self) -> int:
        """Stores to global memory of 128 bits."""
        return self.count(r"STG\.\S*128$")

    @property
    def narrow_stores(self) -> int:
        """Stores to global memory of fewer bits."""
        return self.count(r"STG\b") - self.wide_stores

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.count(r"LDL|STL")

    @property
    def matrix_products(self) -> int:
        """Instructions of tensor cores."""
        return self.count(TENSOR_CORE[self.architecture])

    def executed(self, rounds: int) -> int:
        """Instructions that a thread issues if its only loop, where there is one, is run some times."""
        if len(self.loops) > 1:
            raise ValueError(f"{self.kernel} has {len(self.loops)} loops")
        return self.instructions + (rounds - 1) * sum(self.loops)

    @property
    def in_flight(self) -> int:
        """Bytes that a multiprocessor full of this kernel has under way."""
        return self.pending * self.threads * self.programs


_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
_REGISTER = re.compile(r"\bR(\d+)\b")


def inspect(compiled: Compiled, architecture: int) -> Artefact:
    """Read a cubin with the tools that come with Triton."""
    usage, text = _tools(compiled.asm["cubin"])
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", usage).group(1)) for word in ("REG", "STACK", "LOCAL"))
    lines = [match.groups() for match in _LINE.finditer(text)]
    lines = [line for line in lines if line[0] != "NOP"]
    threads = compiled.warps * 32
    programs, part, limit = occupancy(architecture, registers, compiled.shared, threads)
    return Artefact(
        compiled.name, architecture, threads, registers, stack, local, compiled.shared, programs, part, limit,
        Counter(opcode for opcode, _ in lines), _pending(lines), _loops(text),
    )  # fmt: skip


def _tools(cubin: bytes) -> tuple[str, str]:
    folder = Path(require_triton().__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "kernel.cubin"
        path.write_bytes(cubin)
        commands = (["cuobjdump", "--dump-resource-usage"], ["nvdisasm", "-c"])
        outputs = [
            subprocess.run([folder / tool, *options, path], capture_output=True, text=True, check=True).stdout
            for tool, *options in commands
        ]
    return outputs[0], outputs[1]


def _loops(text: str) -> tuple[int, ...]:
    """The lengths of the loops, by the branches that go back; one to itself, which fills the end, is no loop."""
    seen: dict[str, int] = {}
    number, found = 0, {}
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            seen[label.group(1)] = number
        if not _LINE.search(line):
            continue
        number += 1
        branch = re.search(r"BRA\S*\s+(?:\S+,\s*)?`\((\.L_x_\d+)\)", line)
        if branch and seen.get(branch.group(1), number) < number - 1:
            found[branch.group(1)] = number - seen[branch.group(1)]
    return tuple(found.values())


def _pending(lines: list[tuple[str, str]]) -> int:
    """The most bytes under way: loads until an instruction reads what they bring, copies until a wait for them."""
    loads: dict[int, tuple[int, int]] = {}  # first register: how many, and how many bytes
    copied = most = 0
    for opcode, operands in lines:
        width = int(found.group(1)) // 8 if (found := re.search(r"\.(64|128)$", opcode)) else 4
        if opcode.startswith("DEPBAR"):
            copied = 0
        elif opcode.startswith("LDGSTS"):
            copied += width
        used = {int(r) for r in _REGISTER.findall(operands)}
        for first in [f for f, (count, _) in loads.items() if used & set(range(f, f + count))]:
            del loads[first]
        if opcode.startswith("LDG.") and (to := _REGISTER.match(operands)):
            loads[int(to.group(1))] = (max(1, width // 4), width)
        most = max(most, copied + sum(size for _, size in loads.values()))
    return most
