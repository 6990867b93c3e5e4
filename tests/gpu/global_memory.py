"""Global memory: tensors at made-up addresses, with bounds to the element, alignment, and counts of every byte touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_SPACING = 44
"""Each storage has 2**44 addresses, its first byte in their middle: nothing that is off by a size hits a neighbour."""


@dataclass(frozen=True)
class Threads:
    """Who accesses memory: the program and the warp in it of each lane, and how many barriers their programs passed."""

    program: NDArray[np.int64]
    warp: NDArray[np.int64]
    epoch: int
    lanes: NDArray | slice

    def chosen(self, lanes: NDArray | None) -> Threads:
        """Some of the lanes."""
        if lanes is None:
            return self
        within = np.arange(len(self.program))[self.lanes][lanes]
        return Threads(self.program, self.warp, self.epoch, within)

    def stamp(self) -> NDArray[np.int64]:
        """All of it in one positive number a lane."""
        return ((self.program[self.lanes] << 32) | (self.epoch << 8) | self.warp[self.lanes]) + 1


class AccessError(Exception):
    """An access out of bounds, misaligned, or of a kind that no kernel here should make."""


class Storage:
    """The storage of some tensors; what can be touched are the elements of the tensors that a launch was given."""

    def __init__(self, tensor: torch.Tensor, base: int) -> None:
        storage = tensor.untyped_storage()
        self.pointer = storage.data_ptr()
        self.bytes = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        self.lead = self.pointer % 16
        self.first = base + self.lead
        """The address of the storage's first byte; modulo 16 it is where it is in this process."""
        room = -(-(self.lead + len(self.bytes)) // 16) * 16 + 16
        self.data = np.zeros(room, np.uint8)
        self.data[self.lead : self.lead + len(self.bytes)] = self.bytes
        self.base = base
        self.allowed = np.zeros(room, bool)
        self._allowed_by_size: dict[int, NDArray[np.bool_]] = {}
        self.names: list[str] = []
        self.read = _Counter(room)
        self.written = _Counter(room)
        self._authors: NDArray[np.int64] | None = None
        self._was_read: NDArray[np.bool_] | None = None

    def start(self) -> None:
        """Count from zero: a launch begins."""
        self.read.clear()
        self.written.clear()
        self._authors = self._was_read = None

    def before_store(self, places: NDArray[np.int64], size: int, who: Threads) -> int:
        """Note who writes; how many of the lanes write what was read already in this launch, in an order left to chance."""
        if self._authors is None or self._was_read is None:
            self._was_read = self.read.totals() > 0
            self._authors = np.zeros(len(self.data), np.int64)
        bytes_read = self._was_read.reshape(-1, size)[places]
        self._authors.reshape(-1, size)[places] = who.stamp()[:, None]
        return int(bytes_read.any(1).sum())

    def before_load(self, places: NDArray[np.int64], size: int, who: Threads, lanes: NDArray | None) -> int:
        """How many of the lanes read what another program wrote, or another warp since the last barrier."""
        if self._authors is None or self._was_read is None:
            return 0
        self._was_read.reshape(-1, size)[places] = True
        stamps = self._authors.reshape(-1, size)[places]
        if not stamps.any():
            return 0
        author, own = stamps - 1, (who.chosen(lanes).stamp() - 1)[:, None]
        elsewhere = (author >> 32) != (own >> 32)
        too_early = ((author >> 8) == (own >> 8)) & (author != own)
        return int(((stamps > 0) & (elsewhere | too_early)).any(1).sum())

    def admit(self, name: str, tensor: torch.Tensor) -> int:
        """Let a tensor's elements be touched; their first address."""
        size = tensor.element_size()
        inside = torch.zeros(len(self.bytes), dtype=torch.bool)
        strides = [s * size for s in tensor.stride()]
        offset = tensor.storage_offset() * size
        inside.as_strided([*tensor.shape, size], [*strides, 1], offset).fill_(True)
        self.allowed[self.lead : self.lead + len(self.bytes)] |= inside.numpy()
        self._allowed_by_size.clear()
        if name not in self.names:
            self.names.append(name)
        return self.first + offset

    def may_touch(self, size: int) -> NDArray[np.bool_]:
        """Whether all of ``size`` bytes at each multiple of it belong to elements of tensors."""
        if size not in self._allowed_by_size:
            self._allowed_by_size[size] = self.allowed.reshape(-1, size).all(1)
        return self._allowed_by_size[size]

    def counts(self, which: str) -> NDArray[np.int64]:
        """How often each byte of the storage was ``read`` or ``written``."""
        return getattr(self, which).totals()[self.lead : self.lead + len(self.bytes)]

    def mask(self) -> NDArray[np.bool_]:
        """The bytes that belong to elements of tensors."""
        return self.allowed[self.lead : self.lead + len(self.bytes)]


class _Counter:
    """How often each byte was touched, from a log of the accesses that is summed up now and then."""

    def __init__(self, size: int) -> None:
        self.sums = np.zeros(size, np.int64)
        self.log: dict[int, list[NDArray]] = {}
        self.logged = 0
        self.requested = 0
        self.narrowest = 0

    def add(self, places: NDArray[np.int64], size: int) -> None:
        """Accesses of ``size`` bytes each, at multiples of it."""
        self.log.setdefault(size, []).append(places)
        self.logged += len(places)
        self.requested += size * len(places)
        self.narrowest = min(self.narrowest or size, size)
        if self.logged > 1 << 20:
            self.totals()

    def totals(self) -> NDArray[np.int64]:
        for size, places in self.log.items():
            self.sums += np.bincount(np.concatenate(places), minlength=len(self.sums) // size).repeat(size)
        self.log, self.logged = {}, 0
        return self.sums

    def clear(self) -> None:
        self.sums[:] = 0
        self.log, self.logged, self.requested, self.narrowest = {}, 0, 0, 0


class GlobalMemory:
    """The storages of all tensors of a sequence of launches."""

    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self.races: dict[str, int] = {}

    def place(self, name: str, tensor: torch.Tensor) -> int:
        """The address of a tensor's first element; its storage is copied in when it is first seen."""
        if tensor.device.type != "cpu":
            raise AccessError(f"{name} is on {tensor.device}: the emulator takes its inputs from CPU tensors")
        pointer = tensor.untyped_storage().data_ptr()
        for storage in self.storages:
            if storage.pointer == pointer:
                return storage.admit(name, tensor)
        base = ((len(self.storages) + 1) << _SPACING) + (1 << (_SPACING - 1))
        self.storages.append(Storage(tensor, base))
        return self.storages[-1].admit(name, tensor)

    def copy_back(self) -> None:
        """Write results into the tensors."""
        for storage in self.storages:
            changed = storage.counts("written") > 0
            if changed.any():
                storage.bytes[changed] = storage.data[storage.lead : storage.lead + len(changed)][changed]

    def load(self, addresses: NDArray[np.uint64], size: int, element: np.dtype, who: Threads, by: str) -> NDArray:
        """``size`` bytes at each address as rows of elements."""
        result = None
        for storage, places, lanes in self._find(addresses, size, "load"):
            unit = min(size, 8)
            rows = storage.data.view(f"u{unit}").reshape(-1, size // unit)[places].view(element)
            self._note(storage.before_load(places, size, who, lanes), "reads", storage, by)
            storage.read.add(places, size)
            if lanes is None:
                return rows
            if result is None:
                result = np.empty((len(addresses), rows.shape[1]), element)
            result[lanes] = rows
        return np.empty((0, size // element.itemsize), element) if result is None else result

    def store(self, addresses: NDArray[np.uint64], rows: NDArray, who: Threads, by: str) -> None:
        """Rows of elements at each address."""
        size = rows.shape[1] * rows.itemsize
        for storage, places, lanes in self._find(addresses, size, "store"):
            unit = min(size, 8)
            values = np.ascontiguousarray(rows if lanes is None else rows[lanes]).view(f"u{unit}")
            storage.data.view(f"u{unit}").reshape(-1, size // unit)[places] = values
            self._note(storage.before_store(places, size, who.chosen(lanes)), "writes", storage, by)
            storage.written.add(places, size)

    def _note(self, lanes: int, what: str, storage: Storage, by: str) -> None:
        if lanes:
            text = f"{by} {what} bytes of {'/'.join(storage.names)} that other threads of the launch access in no fixed order"
            self.races[text] = self.races.get(text, 0) + lanes

    def _find(self, addresses: NDArray[np.uint64], size: int, kind: str) -> list[tuple[Storage, NDArray, Any]]:
        """The storage, the place in units of ``size``, and the lanes (None: all) of each address."""
        if not len(addresses):
            return []
        signed = addresses.view(np.int64)
        bad = signed % size != 0
        if bad.any():
            raise AccessError(f"misaligned {kind} of {size} bytes: {self.describe(int(signed[bad][0]))}")
        owner = signed >> _SPACING
        if (owner == owner[0]).all():
            return [(*self._check(int(owner[0]), signed, size, kind), None)]
        parts = [(key, np.flatnonzero(owner == key)) for key in np.unique(owner)]
        return [(*self._check(int(key), signed[lanes], size, kind), lanes) for key, lanes in parts]

    def _check(self, owner: int, addresses: NDArray[np.int64], size: int, kind: str) -> tuple[Storage, NDArray]:
        if not 1 <= owner <= len(self.storages):
            raise AccessError(f"{kind} of {size} bytes out of bounds: {self.describe(int(addresses[0]))}")
        storage = self.storages[owner - 1]
        places = (addresses - storage.base) // size
        outside = (places < 0) | (places >= len(storage.data) // size)
        if not outside.any():
            outside = ~storage.may_touch(size)[places]
        if outside.any():
            count = f"{int(outside.sum())} of {len(outside)} lanes"
            first = self.describe(int(addresses[outside][0]))
            raise AccessError(f"{kind} of {size} bytes out of bounds in {count}: {first}")
        return storage, places

    def describe(self, address: int) -> str:
        """An address in terms of the tensors."""
        owner = address >> _SPACING
        if not 1 <= owner <= len(self.storages):
            return f"address {address:#x}, which is near no tensor"
        storage = self.storages[owner - 1]
        return f"byte {address - storage.first} of {'/'.join(storage.names)}, which has {len(storage.bytes)} bytes"
