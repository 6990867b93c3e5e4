"""What was packed for a GPU, kept with the tensors that it was packed from. Needs no Triton, so that all may forget."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class _Kept:
    value: Any
    state: tuple[Any, ...]
    references: list[Any]


_kept: dict[tuple[Any, ...], _Kept] = {}
_lock = threading.Lock()


def find(tensors: Sequence[Tensor], key: tuple[Any, ...], build: Callable[[], Any]) -> Any:
    """What was built from tensors as they are now.

    Only what the CPU knows is looked at: version counters, memory and layout. Values would have to be waited for.

    Args:
        tensors: which it goes with.
        key: what else it follows from.
        build: makes it where there is none, or something has changed.
    """
    whole = (*key, *[id(tensor) for tensor in tensors])
    state = _state_of(tensors)
    with _lock:
        kept = _kept.get(whole)
        if kept is not None and kept.state == state:
            return kept.value
    value = build()
    on_gpu = tensors[0].is_cuda
    if _state_of(tensors) != state or (on_gpu and torch.cuda.is_current_stream_capturing()):
        return value  # written while it was packed, or packed by a graph when it will run: for this call alone
    if on_gpu:
        torch.cuda.current_stream(tensors[0].device).synchronize()  # passes on other streams take it as well
    references = [weakref.ref(tensor, lambda _: _drop(whole)) for tensor in tensors]
    with _lock:
        _kept[whole] = _Kept(value, state, references)
    return value


def forget(tensors: Iterable[Tensor]) -> int:
    """Drop what was packed from any of these tensors; returns how much."""
    if not _kept:
        return 0
    found = list(tensors)
    objects, addresses = {id(tensor) for tensor in found}, {tensor.data_ptr() for tensor in found}
    with _lock:
        kept = list(_kept.items())
    stale = [
        whole
        for whole, each in kept
        if any(id(reference()) in objects for reference in each.references)
        or any(address in addresses for _, address, *_ in each.state)  # a compiled graph has aliases of its own
    ]
    return sum(_drop(whole) for whole in stale)


def size() -> int:
    """How much is kept."""
    return len(_kept)


def _drop(whole: tuple[Any, ...]) -> bool:
    return _kept.pop(whole, None) is not None  # without the lock: a tensor may go at any time, in any thread


def _state_of(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple((_version(t), t.data_ptr(), t.shape, t.stride(), t.dtype) for t in tensors)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
