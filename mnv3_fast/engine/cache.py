"""Folded and packed layers, kept from call to call.

An entry is found by the addresses of the tensors that it was packed from. It is used only if they are as they were
then (version counters, and ``tensor_state``: memory, layout and values, BatchNorm vectors and biases whole, 64 of each
larger weight), and it goes when any of the tensors goes. What no check can see, a write to one weight through ``.data``
or NumPy that misses all samples, needs ``mnv3_fast.refresh``.
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

Key = tuple[int, ...]
Plan = tuple[Tensor, list[int]]


@dataclass
class Entry:
    """One plan and what it was packed from. ``dropped`` entries are not used again by whoever holds them."""

    plan: Tensor
    geometry: list[int]
    state: tuple[bytes, int]
    arguments: Any
    references: list[Any] = field(default_factory=list)
    dropped: bool = False


_entries: dict[Key, Entry] = {}


def find(tensors: list[Tensor], arguments: Any, build: Callable[[], Plan]) -> Entry:
    """The plan that belongs to tensors and arguments; ``build`` packs it if there is none or it has become stale."""
    key = tuple([tensor.data_ptr() for tensor in tensors])
    entry = _entries.get(key)
    if entry is not None and entry.arguments == arguments and is_current(entry, tensors):
        return entry
    state = _state_of(tensors)  # first: a write meanwhile makes the new entry stale, not wrong
    plan, geometry = build()
    references = [weakref.ref(tensor, lambda _: _forget(key)) for tensor in tensors]
    _forget(key)
    entry = _entries[key] = Entry(plan, geometry, state, arguments, references)
    return entry


def is_current(entry: Entry, tensors: list[Tensor]) -> bool:
    """Whether an entry may still be used for its tensors."""
    return not entry.dropped and _state_of(tensors) == entry.state


def _state_of(tensors: list[Tensor]) -> tuple[bytes, int]:
    with torch._C._AutoDispatchBelowAutograd():
        return _library.extension().versions(tensors), STATE(tensors)


def drop(tensors: Iterable[Tensor]) -> int:
    """Forget every plan that was packed from one of these tensors; returns how many."""
    pointers = {tensor.data_ptr() for tensor in tensors}
    stale = [key for key in list(_entries) if not pointers.isdisjoint(key)]
    for key in stale:
        _forget(key)
    return len(stale)


def size() -> int:
    """How many plans are kept."""
    return len(_entries)


def _forget(key: Key) -> None:
    entry = _entries.pop(key, None)
    if entry is not None:
        entry.dropped = True
