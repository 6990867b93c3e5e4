"""Some programs of a kernel in lockstep: every register is a vector over all their threads.

A register that is the same everywhere is kept as a vector of one. Programs that part at a branch go on as machines of
their own; threads of one program that part run one after the other, the lowest instruction first, until they meet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.gpu.global_memory import AccessError, GlobalMemory, Threads
from tests.gpu.parse import Program
from tests.gpu.shared_memory import SharedMemory

STEP_LIMIT = 5_000_000


class EmulationError(Exception):
    """A kernel did what no program may do; the message quotes the instruction."""


@dataclass
class Jump:
    """Where the threads of a mask go on; all that are active without one."""

    target: int
    mask: NDArray[np.bool_] | None


Step = Callable[["Machine"], Jump | None]


@dataclass
class Code:
    """A kernel with its instructions as closures, and the values that registers start with: constants."""

    program: Program
    steps: list[Step]
    constants: dict[int, NDArray]
    registers: int
    shared: int


@dataclass
class Machine:
    """The state of some programs [programs, 3] that run the same code."""

    code: Code
    memory: GlobalMemory
    parameters: dict[str, int]
    grid: tuple[int, int, int]
    programs: NDArray[np.int64]
    shared: SharedMemory
    registers: list[NDArray | None]
    issued: Counter[int] = field(default_factory=Counter)
    at: int = 0
    barriers: int = 0
    places: NDArray[np.int64] | None = None
    active: NDArray[np.bool_] | None = None
    named: dict[str, NDArray | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        threads, count = self.code.program.threads, len(self.programs)
        self.lanes = threads * count
        self.thread = np.tile(np.arange(threads, dtype=np.uint32), count)
        self.program = np.arange(count).repeat(threads)
        self.warp = np.arange(self.lanes) // 32
        self.own_warp = self.warp % max(threads // 32, 1)
        x, y, z = (self.programs[:, axis] for axis in range(3))
        self.number = (x + self.grid[0] * (y + self.grid[1] * z))[self.program]

    def threads(self, lanes: NDArray | slice) -> Threads:
        """Some lanes as global memory has to know them."""
        return Threads(self.number, self.own_warp, self.barriers, lanes)

    def lane_values(self, register: int) -> NDArray:
        """A register as a vector over all lanes."""
        value = self.read(register)
        return value if len(value) == self.lanes else np.broadcast_to(value, (self.lanes,))

    def read(self, register: int) -> NDArray:
        """A register as it is kept.

        Raises:
            EmulationError: where it was never written.
        """
        value = self.registers[register]
        if value is None:
            raise EmulationError("reads a register that was never written")
        return value

    def write(self, register: int, value: NDArray, mask: NDArray[np.bool_] | None) -> None:
        """Write a register where a mask is set."""
        if mask is not None:
            old = self.registers[register]
            if old is None:
                old = np.zeros(1, value.dtype) if value.dtype == bool else np.full(1, -1).astype(value.dtype)
            value = np.where(mask, value, old)
        self.registers[register] = value

    def run(self) -> list[Machine]:
        """Run to the end.

        Returns:
            Machines of programs that went another way, which have not been run.

        Raises:
            EmulationError: with the instruction and what it did.
        """
        steps, instructions = self.code.steps, self.code.program.instructions
        parted: list[Machine] = []
        for _ in range(STEP_LIMIT):
            if self.at >= len(steps):
                self.shared.wait(None)
                self.shared.barrier()
                return parted
            self.issued[self.at] += len(self.programs)
            try:
                jump = steps[self.at](self)
            except (AccessError, EmulationError) as error:
                raise EmulationError(f"{self.code.program.name}: {instructions[self.at]}: {error}") from None
            if self.places is not None:
                self._advance_apart(jump)
            elif jump is None:
                self.at += 1
            elif jump.mask is None or jump.mask.all():
                self.at = jump.target
            elif not jump.mask.any():
                self.at += 1
            else:
                parted += self._part(jump)
        raise EmulationError(f"{self.code.program.name}: more than {STEP_LIMIT} steps")

    def _part(self, jump: Jump) -> list[Machine]:
        """Programs go different ways, or, where a single program is left, its threads do."""
        mask = np.broadcast_to(jump.mask, (self.lanes,))
        by_program = mask.reshape(len(self.programs), -1)
        if len(self.programs) == 1:
            self.places = np.where(mask, jump.target, self.at + 1)
            self._meet()
            return []
        taken = by_program.all(1)
        if not (taken | ~by_program.any(1)).all():
            # The threads of some program part: each program goes on alone, and decides again.
            others = [self._select(np.array([i])) for i in range(1, len(self.programs))]
            self._become(self._select(np.array([0])))
            return others
        other = self._select(np.flatnonzero(taken))
        other.at = jump.target
        self._become(self._select(np.flatnonzero(~taken)))
        self.at += 1
        return [other]

    def _advance_apart(self, jump: Jump | None) -> None:
        assert self.places is not None and self.active is not None
        self.places[self.active] = self.at + 1
        if jump is not None:
            self.places[self.active if jump.mask is None else self.active & jump.mask] = jump.target
        self._meet()

    def _meet(self) -> None:
        assert self.places is not None
        self.at = int(self.places.min())
        self.active = self.places == self.at
        if self.active.all():
            self.places = self.active = None

    def _select(self, chosen: NDArray[np.int64]) -> Machine:
        lanes = np.isin(self.program, chosen)
        registers = [r if r is None or len(r) == 1 else r[lanes] for r in self.registers]
        return Machine(
            self.code, self.memory, self.parameters, self.grid, self.programs[chosen], self.shared.select(chosen),
            registers, at=self.at, barriers=self.barriers,
        )  # fmt: skip

    def _become(self, other: Machine) -> None:
        other.issued, other.shared.races = self.issued, self.shared.races
        self.__dict__.update(other.__dict__)


def mask_of(machine: Machine, predicate: int | None, negated: bool) -> NDArray[np.bool_] | None:
    """The lanes in which an instruction is executed; None where it is in all."""
    mask = machine.active
    if predicate is not None:
        value = machine.read(predicate)
        value = ~value if negated else value
        mask = value if mask is None else mask & value
    return None if mask is None or mask.all() else mask
