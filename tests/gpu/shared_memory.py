"""Shared memory of some programs side by side: bounds, alignment, copies under way, and races between barriers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tests.gpu.global_memory import AccessError
from tests.gpu.parse import Instruction

POISON = 0xFF
"""What is read before it was written is NaN in every type."""


@dataclass
class _Access:
    places: NDArray[np.int64]
    size: int
    warps: NDArray[np.int64]
    writes: bool
    by: Instruction
    agreed: bool = False
    """All lanes that write a byte in this instruction write the same."""


@dataclass
class _Copy:
    """A ``cp.async`` whose bytes have not landed."""

    access: _Access
    rows: NDArray[np.uint8]
    group: int | None


class SharedMemory:
    """``programs`` times ``size`` bytes. Accesses are logged, and compared with each other at each barrier.

    Two accesses of a byte, one of them a write, by different warps and with no barrier between them are a race; but one
    instruction by which several warps write the same value is none, since Triton keeps copies of a value in several warps
    and stores them all. Within a warp the program's order counts. A copy that is under way is a write in every span between barriers from its start
    to the wait for it; its bytes land at the wait, and until then NaN is read in their place.
    """

    def __init__(self, programs: int, size: int, warps: int) -> None:
        self.programs = programs
        self.size = size
        self.stride = -(-size // 16) * 16
        self.warps = warps
        self.data = np.full(programs * self.stride, POISON, np.uint8)
        self.log: list[_Access] = []
        self.copies: list[_Copy] = []
        self.groups = 0
        self.races: dict[str, int] = {}

    def load(
        self, program: NDArray, warps: NDArray, addresses: NDArray, size: int, element: np.dtype, by: Instruction
    ) -> NDArray:
        """Rows of elements at addresses [lanes] in the memory of ``program`` [lanes]."""
        places = self._places(program, addresses, size, "load")
        self.log.append(_Access(places, size, warps, False, by))
        unit = min(size, 8)
        return self.data.view(f"u{unit}").reshape(-1, size // unit)[places].view(element)

    def store(self, program: NDArray, warps: NDArray, addresses: NDArray, rows: NDArray, by: Instruction) -> None:
        """Write rows of elements."""
        size = rows.shape[1] * rows.itemsize
        places = self._places(program, addresses, size, "store")
        self._write(places, size, rows)
        unit = min(size, 8)
        kept = self.data.view(f"u{unit}").reshape(-1, size // unit)[places]
        agreed = bool((kept == np.ascontiguousarray(rows).view(f"u{unit}")).all())
        self.log.append(_Access(places, size, warps, True, by, agreed))

    def copy(self, program: NDArray, warps: NDArray, addresses: NDArray, rows: NDArray, by: Instruction) -> None:
        """Start a copy of rows of bytes, which land at :meth:`wait`."""
        size = rows.shape[1]
        access = _Access(self._places(program, addresses, size, "copy"), size, warps, True, by)
        self._write(access.places, size, np.full_like(rows, POISON))
        self.copies.append(_Copy(access, rows, None))

    def commit(self) -> None:
        """The copies that were started since the last commit are a group."""
        for copy in self.copies:
            if copy.group is None:
                copy.group = self.groups
        self.groups += 1

    def wait(self, pending: int | None) -> None:
        """All but the newest ``pending`` groups land; None: all copies, committed or not."""
        newest = self.groups - (pending or 0)
        landed, left = [], []
        for copy in self.copies:
            done = pending is None or (copy.group is not None and copy.group < newest)
            (landed if done else left).append(copy)
        self.copies = left
        for copy in landed:
            self._write(copy.access.places, copy.access.size, copy.rows)
            self.log.append(copy.access)

    def barrier(self) -> None:
        """Compare what was done since the last barrier; a kernel's end is one too."""
        accesses = self.log + [copy.access for copy in self.copies]
        self.log = []
        writes = [a for a in accesses if a.writes]
        if not writes:
            return
        granule = min(a.size for a in accesses)
        owner = np.full(len(self.data) // granule, -1, np.int64)
        author = np.full(len(owner), -1, np.int32)
        for order, access in enumerate(writes):
            at, warps = _spread(access, granule)
            before = owner[at]
            self._report((before != -1) & (before != warps), access, writes, author[at])
            owner[at], author[at] = warps, order
            if not access.agreed:
                self._report(owner[at] != warps, access, writes, author[at])
        for access in accesses:
            if not access.writes:
                at, warps = _spread(access, granule)
                before = owner[at]
                self._report((before != -1) & (before != warps), access, writes, author[at])

    def _report(self, clash: NDArray, access: _Access, writes: list[_Access], authors: NDArray) -> None:
        if clash.any():
            other = writes[int(authors[clash][0])].by
            text = f"{access.by} and {other} touch the same shared bytes from different warps with no barrier between"
            self.races[text] = self.races.get(text, 0) + int(clash.sum())

    def _places(self, program: NDArray, addresses: NDArray, size: int, kind: str) -> NDArray[np.int64]:
        at = addresses.astype(np.int64)
        outside = (at < 0) | (at + size > self.size)
        if outside.any():
            raise AccessError(
                f"shared {kind} of {size} bytes out of bounds: byte {int(at[outside][0])} of {self.size} bytes"
            )
        if (at % size != 0).any():
            raise AccessError(f"misaligned shared {kind} of {size} bytes: byte {int(at[at % size != 0][0])}")
        return (at + program * self.stride) // size

    def _write(self, places: NDArray[np.int64], size: int, rows: NDArray) -> None:
        unit = min(size, 8)
        self.data.view(f"u{unit}").reshape(-1, size // unit)[places] = np.ascontiguousarray(rows).view(f"u{unit}")

    def select(self, programs: NDArray[np.int64]) -> SharedMemory:
        """The memory of some of the programs, on its own from now on; races found so far stay here."""
        part = SharedMemory(len(programs), self.size, self.warps)
        part.data = self.data.reshape(self.programs, self.stride)[programs].reshape(-1).copy()
        part.groups = self.groups
        new = np.full(self.programs, -1)
        new[programs] = np.arange(len(programs))

        def kept(access: _Access) -> tuple[_Access, NDArray]:
            old = access.warps // self.warps
            lanes = new[old] >= 0
            shift = new[old[lanes]] - old[lanes]
            places = access.places[lanes] + shift * (self.stride // access.size)
            warps = access.warps[lanes] + shift * self.warps
            return replace(access, places=places, warps=warps), lanes

        part.log = [kept(access)[0] for access in self.log]
        for copy in self.copies:
            access, lanes = kept(copy.access)
            part.copies.append(_Copy(access, copy.rows[lanes], copy.group))
        return part


def _spread(access: _Access, granule: int) -> tuple[NDArray, NDArray]:
    parts = access.size // granule
    if parts == 1:
        return access.places, access.warps
    at = (access.places[:, None] * parts + np.arange(parts)).reshape(-1)
    return at, access.warps.repeat(parts)
