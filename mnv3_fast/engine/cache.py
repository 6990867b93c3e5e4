"""Folded and packed layers, kept from call to call.

An entry is found by what its tensors are like: their version counters, and ``tensor_state``: layout and values,
BatchNorm vectors and biases whole, of each larger weight its memory and 64 values. So it is used only if nothing has
changed, and it goes when any of the tensors goes, or when others at the same addresses take its place. What no check
can see, a write to one weight through ``.data`` or NumPy that misses all samples, needs ``mnv3_fast.refresh``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mnv3_fast import _library
from mnv3_fast.engine.op import STATE

Addresses = tuple[int, ...]
State = tuple[bytes, int, Any]
Plan = tuple[Tensor, list[int]]
INLINED = 8
"""Vectors of up to this length are constants in the code that AOTInductor generates: new tensors on each call."""


@dataclass
class Entry:
    """One plan and what it was packed from. ``dropped`` entries are not used again by whoever holds them."""

    plan: Tensor
    geometry: list[int]
    state: State
    addresses: Addresses
    references: list[Any] = field(default_factory=list)
    dropped: bool = False


_entries: dict[State, Entry] = {}
_by_address: dict[Addresses, Entry] = {}


def find(tensors: list[Tensor], arguments: Any, build: Callable[[], Plan]) -> Entry:
    """The plan that belongs to tensors and arguments; ``build`` packs it if there is none or it has become stale."""
    state = _state_of(tensors, arguments)
    entry = _entries.get(state)
    if entry is not None:
        return entry
    plan, geometry = build()  # after the state: a write meanwhile makes the new entry stale, not wrong
    lasting = [tensor for tensor in tensors if tensor.numel() > INLINED] or tensors
    addresses = tuple(tensor.data_ptr() for tensor in lasting)
    _forget(_by_address.get(addresses))
    entry = Entry(plan, geometry, state, addresses)
    gone = weakref.ref(entry)  # no cycle: plans are large, and should not wait for the garbage collector
    entry.references = [weakref.ref(tensor, lambda _: _forget(gone())) for tensor in lasting]
    _entries[state] = _by_address[addresses] = entry
    return entry


def _state_of(tensors: list[Tensor], arguments: Any) -> State:
    with torch._C._AutoDispatchBelowAutograd():
        return _library.extension().versions(tensors), STATE(tensors), arguments


def drop(tensors: Iterable[Tensor]) -> int:
    """Forget every plan that was packed from one of these tensors; returns how many."""
    pointers = {tensor.data_ptr() for tensor in tensors}
    stale = [entry for entry in list(_entries.values()) if not pointers.isdisjoint(entry.addresses)]
    for entry in stale:
        _forget(entry)
    return len(stale)


def size() -> int:
    """How many plans are kept."""
    return len(_entries)


def _forget(entry: Entry | None) -> None:
    if entry is None:
        return
    entry.dropped = True
    for table, key in ((_entries, entry.state), (_by_address, entry.addresses)):
        if table.get(key) is entry:
            del table[key]
