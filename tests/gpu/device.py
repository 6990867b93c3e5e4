"""A device of numpy: runs launches on CPU tensors, and says what they read, wrote, raced for and computed."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnv3_fast.gpu.launch import Launch
from tests.gpu.compile import Compiled, compile_launch
from tests.gpu.decode import Decoder
from tests.gpu.global_memory import GlobalMemory
from tests.gpu.machine import Code, EmulationError, Machine
from tests.gpu.parse import parse
from tests.gpu.shared_memory import SharedMemory

ARCHITECTURE = 80
LANES = 4096
"""Threads that are emulated side by side: numpy's cost of a call is spread over them, and registers stay in the cache."""
CLASSES = {
    "tensor core": ("mma",),
    "multiply-add": ("fma",),
    "conversion": ("cvt",),
    "global load": ("ld.global", "cp.async.ca", "cp.async.cg"),
    "global store": ("st.global",),
    "shared": ("ld.shared", "st.shared", "ldmatrix"),
    "shuffle": ("shfl",),
    "barrier": ("bar",),
}


@dataclass
class Traffic:
    """Bytes of one storage that a launch moved, and its narrowest load and store (0: there was none)."""

    requested: int = 0
    unique: int = 0
    written: int = 0
    narrowest_load: int = 0
    narrowest_store: int = 0


@dataclass
class Report:
    """What a launch did."""

    kernel: str
    programs: int
    threads: int
    traffic: dict[str, Traffic]
    races: dict[str, int]
    rewritten: int = 0
    """Bytes that the launch wrote more than once."""
    instructions: dict[str, int] = field(default_factory=dict)
    """Instructions that threads issued, by class; those that a predicate switched off included."""

    def total(self, what: str) -> int:
        """A sum over all storages: "requested", "unique" or "written"."""
        return sum(getattr(traffic, what) for traffic in self.traffic.values())


_decoded: dict[tuple, Code] = {}


class Device:
    """Runs launches; tensors keep their contents and counts from one to the next.

    Args:
        damage: changes a kernel's PTX before it is run, for tests that plant a fault.
        lanes: threads side by side.
    """

    def __init__(self, damage: Callable[[str], str] | None = None, lanes: int = LANES) -> None:
        self.memory = GlobalMemory()
        self.reports: list[Report] = []
        self.faults: list[str] = []
        self._damage = damage
        self._lanes = lanes
        self._tensors: list[Tensor] = []
        self._writes: dict[int, NDArray[np.int64]] = {}

    def run(
        self,
        launch: Launch,
        programs: Iterable[tuple[int, int, int]] | None = None,
        passed: dict[str, int] | None = None,
    ) -> Report:
        """Run a launch and write its results into its tensors.

        Args:
            launch: what is run, compiled as it stands.
            programs: those of the grid that are run, all unless given.
            passed: numbers that the kernel is given in place of the launch's, for tests that plant a fault.

        Raises:
            UnknownPtx: for an instruction that the emulator does not know.
            EmulationError: for an access out of bounds or misaligned, a divergent barrier and the like.
        """
        compiled = compile_launch(launch, ARCHITECTURE)
        code = self._decode(compiled)
        parameters = self._parameters({**launch.arguments, **(passed or {})}, compiled, code)
        for storage in self.memory.storages:
            storage.start()
        races = self.memory.races = {}
        issued: Counter[int] = Counter()
        chosen = np.array(list(programs)) if programs is not None else all_programs(launch.grid)
        side_by_side = max(1, self._lanes // code.program.threads)
        with np.errstate(all="ignore"):
            for start in range(0, len(chosen), side_by_side):
                self._run_some(code, parameters, launch.grid, chosen[start : start + side_by_side], races, issued)
        return self._report(code, chosen, races, issued)

    def _run_some(
        self, code: Code, parameters: dict, grid: tuple, chosen: NDArray, races: dict[str, int], issued: Counter
    ) -> None:
        shared = SharedMemory(len(chosen), code.shared, code.program.threads // 32)
        registers = [code.constants.get(number) for number in range(code.registers)]
        waiting = [Machine(code, self.memory, parameters, grid, chosen, shared, registers)]
        while waiting:
            machine = waiting.pop()
            waiting += machine.run()
            issued.update(machine.issued)
            for text, count in machine.shared.races.items():
                races[text] = races.get(text, 0) + count

    def _decode(self, compiled: Compiled) -> Code:
        key = (compiled.key, self._damage)
        if key not in _decoded:
            text = compiled.asm["ptx"]
            program = parse(self._damage(text) if self._damage else text)
            if program.threads != compiled.warps * 32:
                raise EmulationError(f"{program.name}: {program.threads} threads, wanted {compiled.warps * 32}")
            _decoded[key] = Decoder(program).code(compiled.shared)
        return _decoded[key]

    def _parameters(self, arguments: dict, compiled: Compiled, code: Code) -> dict[str, int]:
        """The kernel's parameters as bits; two pointers to scratch memory that no kernel here uses come last."""
        names = code.program.parameters
        if len(names) != len(compiled.parameters) + 2:
            raise EmulationError(f"{compiled.name}: {len(names)} parameters for {compiled.parameters}")
        values: dict[str, int] = {}
        for name, (parameter, kind) in zip(compiled.parameters, names, strict=False):
            value = arguments[name]
            if isinstance(value, Tensor):
                self._tensors.append(value)
                values[parameter] = self.memory.place(name, value)
            elif kind == "f32":
                values[parameter] = struct.unpack("<I", struct.pack("<f", value))[0]
            else:
                values[parameter] = int(value) % (1 << 64)
        return values | {parameter: 0 for parameter, _ in names[-2:]}

    def _report(self, code: Code, chosen: NDArray, races: dict[str, int], issued: Counter) -> Report:
        self.memory.copy_back()
        traffic, rewritten = {}, 0
        for number, storage in enumerate(self.memory.storages):
            reads, writes = storage.counts("read"), storage.counts("written")
            if reads.any() or writes.any():
                moved = Traffic(
                    storage.read.requested, int((reads > 0).sum()), storage.written.requested,
                    storage.read.narrowest, storage.written.narrowest,
                )  # fmt: skip
                traffic["/".join(storage.names)] = moved
            rewritten += int((writes > 1).sum())
            self._writes[number] = writes.copy() + self._writes.get(number, 0)
        names = code.program.instructions
        classes: Counter[str] = Counter()
        for place, count in issued.items():
            classes[_class_of(names[place].opcode)] += count * code.program.threads
        report = Report(
            code.program.name, len(chosen), code.program.threads, traffic, dict(races), rewritten, dict(classes)
        )
        self.reports.append(report)
        self.faults += [f"{report.kernel}: race: {text} ({count} times)" for text, count in races.items()]
        return report

    def writes_of(self, tensor: Tensor) -> NDArray[np.int64] | None:
        """How often each byte of a tensor's storage was written by all launches; None if no launch was given it."""
        pointer = tensor.untyped_storage().data_ptr()
        for number, storage in enumerate(self.memory.storages):
            if storage.pointer == pointer:
                return self._writes[number]
        return None

    def written_faults(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[str]:
        """What is wrong with what was written: a byte of an output exactly once, of work space at most once, of an input never."""
        found = []
        for name, tensor in ((f"output {i}", t) for i, t in enumerate(outputs)):
            if tensor.numel() and self.writes_of(tensor) is None:
                found.append(f"{name} was given to no launch")
        kept = {t.untyped_storage().data_ptr() for t in inputs}
        wanted = {t.untyped_storage().data_ptr() for t in outputs}
        for number, storage in enumerate(self.memory.storages):
            writes, names = self._writes[number][storage.mask()], "/".join(storage.names)
            if storage.pointer in kept:
                if writes.any():
                    found.append(f"{int((writes > 0).sum())} bytes of the input {names} were written")
            else:
                if storage.pointer in wanted and (writes == 0).any():
                    found.append(f"{int((writes == 0).sum())} of {len(writes)} bytes of {names} were not written")
                if (writes > 1).any():
                    found.append(
                        f"{int((writes > 1).sum())} of {len(writes)} bytes of {names} were written twice or more"
                    )
        return found


def _class_of(opcode: str) -> str:
    for name, prefixes in CLASSES.items():
        if opcode.startswith(prefixes):
            return name
    return "other"


def all_programs(grid: tuple[int, int, int]) -> NDArray[np.int64]:
    """[programs, 3], x first."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in reversed(grid)), indexing="ij")
    return np.stack([x.reshape(-1), y.reshape(-1), z.reshape(-1)], 1)


def emulate(launches: Sequence[Launch], damage: Callable[[str], str] | None = None) -> Device:
    """Run launches in order on a fresh device."""
    device = Device(damage)
    for launch in launches:
        device.run(launch)
    return device


def garbage(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor of NaN, or of the largest number for integers: what was not written shows."""
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
    return torch.full(shape, value, dtype=dtype)
