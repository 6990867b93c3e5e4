"""Folded and packed blocks, kept from call to call.

An entry is found by the addresses of a block's tensors. It is used only if their version counters, the layout of the
weights and a fingerprint (BatchNorm vectors and biases whole, 64 values of each larger weight) are as they were when it
was packed, and it goes when any of the tensors goes. What no check can see, a write to one weight through ``.data`` or
NumPy that misses all samples, needs ``mnv3_fast.refresh``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnv3_fast import _library
from mnv3_fast.engine.plan import PlanBuilder
from mnv3_fast.ops.inverted_residual.layout import check_block, unflatten

Key = tuple[int, ...]


@dataclass
class Entry:
    """One packed block and what it was packed from."""

    plan: Tensor
    geometry: list[int]
    versions: list[int] | None
    layouts: list[tuple[int, torch.Size, tuple[int, ...]]]
    fingerprint: int
    counts: list[int]
    spec: Sequence[int]
    constants: Sequence[float]
    references: list[Any]


_entries: dict[Key, Entry] = {}


def packed(tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]) -> Entry:
    """The plan of a block, packed now if there is none or its tensors have changed."""
    key = tuple([tensor.data_ptr() for tensor in tensors])
    versions = _versions(tensors)
    entry = _entries.get(key)
    if (
        entry is not None
        and entry.versions == versions
        and entry.spec == spec
        and entry.constants == constants
        and _as_laid_out(tensors, entry.layouts)
        and entry.fingerprint == _library.extension().fingerprint(key, entry.counts)
    ):
        return entry
    return _pack(key, versions, tensors, spec, constants)


def drop(tensors: Iterable[Tensor]) -> int:
    """Forget every packed block that was made from one of these tensors; returns how many."""
    pointers = {tensor.data_ptr() for tensor in tensors}
    stale = [key for key in list(_entries) if not pointers.isdisjoint(key)]
    for key in stale:
        _entries.pop(key, None)
    return len(stale)


def size() -> int:
    """How many blocks are kept."""
    return len(_entries)


def _versions(tensors: Sequence[Tensor]) -> list[int] | None:
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:  # inference tensors count no versions; the fingerprint is all there is
        return None


def _as_laid_out(tensors: Sequence[Tensor], layouts: list[tuple[int, torch.Size, tuple[int, ...]]]) -> bool:
    """``weight.data = weight.data[:8]`` changes neither address nor version."""
    for index, shape, stride in layouts:
        tensor = tensors[index]
        if tensor.shape != shape or tensor.stride() != stride:
            return False
    return True


def _pack(
    key: Key, versions: list[int] | None, tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]
) -> Entry:
    dense = [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in tensors]
    block = unflatten(dense, spec, constants)
    check_block(block)
    first = block.expand or block.depthwise
    builder = PlanBuilder(first.weight.shape[1] if block.expand else first.weight.shape[0])
    builder.add_block(dense, spec, constants)
    plan, geometry = builder.build()
    counts = [_span(tensor) for tensor in tensors]
    fingerprint = _library.extension().fingerprint(key, counts)
    references = [weakref.ref(tensor, lambda _: _entries.pop(key, None)) for tensor in tensors]
    layouts = [(i, tensor.shape, tensor.stride()) for i, tensor in enumerate(tensors) if tensor.dim() != 1]
    entry = Entry(plan, geometry, versions, layouts, fingerprint, counts, list(spec), list(constants), references)
    _entries[key] = entry
    return entry


def _span(tensor: Tensor) -> int:
    """Floats from a tensor's first to its last element: what may be read from its address on."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
