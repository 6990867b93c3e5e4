"""Folded and packed layers, kept from call to call.

An entry is found by what its tensors are like: their version counters, and ``tensor_state``: layout and values,
BatchNorm vectors and biases whole, of each larger weight its memory and 64 values. So it is used only if nothing has
changed, and it goes when any of the tensors goes, or when these tensors are packed anew. What no check
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

Objects = tuple[int, ...]
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
    objects: Objects
    addresses: frozenset[int]
    references: list[Any] = field(default_factory=list)
    dropped: bool = False


_entries: dict[State, Entry] = {}
_by_objects: dict[Objects, Entry] = {}


def find(tensors: list[Tensor], arguments: Any, build: Callable[[], Plan]) -> Entry:
    """The plan that belongs to tensors and arguments; ``build`` packs it if there is none or it has become stale.

    If something is written while it packs, the plan is ``dropped`` and not kept.
    """
    state = _state_of(tensors, arguments)
    entry = _entries.get(state)
    if entry is not None:
        return entry
    plan, geometry = build()
    lasting = [tensor for tensor in tensors if tensor.numel() > INLINED] or tensors
    # By the objects: memory that one was given meanwhile by `.data =` may lie where a freed one did.
    objects = tuple(id(tensor) for tensor in lasting)
    _forget(_by_objects.get(objects))
    entry = Entry(plan, geometry, state, objects, frozenset(tensor.data_ptr() for tensor in lasting))
    if _state_of(tensors, arguments) != state:
        entry.dropped = True  # written while it was packed, perhaps to be taken back: for this call alone
        return entry
    gone = weakref.ref(entry)  # no cycle: plans are large, and should not wait for the garbage collector
    entry.references = [weakref.ref(tensor, lambda _: _forget(gone())) for tensor in lasting]
    _entries[state] = _by_objects[objects] = entry
    return entry


def _state_of(tensors: list[Tensor], arguments: Any) -> State:
    with torch._C._AutoDispatchBelowAutograd():
        return _library.extension().versions(tensors), STATE(tensors), arguments


def drop(tensors: Iterable[Tensor]) -> int:
    """Forget every plan that was packed from one of these tensors; returns how many."""
    found = list(tensors)
    pointers, objects = {tensor.data_ptr() for tensor in found}, {id(tensor) for tensor in found}
    stale = [
        entry
        for entry in list(_entries.values())
        if not (pointers.isdisjoint(entry.addresses) and objects.isdisjoint(entry.objects))
    ]
    for entry in stale:
        _forget(entry)
    return len(stale)


def drop_parts(whole: Entry) -> None:
    """Forget the plans of parts of what another plan holds."""
    objects = set(whole.objects)
    for entry in list(_entries.values()):
        if entry is not whole and objects.issuperset(entry.objects):
            _forget(entry)


def size() -> int:
    """How many plans are kept."""
    return len(_entries)


def _forget(entry: Entry | None) -> None:
    if entry is None:
        return
    entry.dropped = True
    if _entries.get(entry.state) is entry:
        del _entries[entry.state]
    if _by_objects.get(entry.objects) is entry:
        del _by_objects[entry.objects]
