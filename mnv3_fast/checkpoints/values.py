"""What a pickle may be made of beside plain containers: tensors, numpy's arrays, and inert placeholders."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in (
        "float32", "float64", "float16", "bfloat16", "uint8", "int8", "int16", "int32", "int64", "bool",
        "uint16", "uint32", "uint64", "complex64", "complex128",
    )
}  # fmt: skip
STORAGES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip
MOST_DIMENSIONS = 16


class Refused(ValueError):
    """Why a file is not read."""


@dataclass(frozen=True)
class Name:
    """Something that a pickle names, such as ``os.system``: these letters and nothing else."""

    full: str

    def __str__(self) -> str:
        return f"the name {self.full}"


@dataclass(eq=False)
class Placeholder:
    """What stands where a pickle has an object of an unknown kind: its contents, and no code of it."""

    name: str
    arguments: tuple[Any, ...] = field(default=(), repr=False)
    state: Any = field(default=None, repr=False)
    elements: list[Any] = field(default_factory=list, repr=False)
    entries: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return f"an object of the unknown kind {self.name}"


@dataclass(frozen=True)
class NumpyDtype:
    """A dtype of numbers; ``kind`` is None of every other."""

    kind: str | None
    order: str = "="

    def dtype(self) -> np.dtype | None:
        """numpy's."""
        return None if self.kind is None else np.dtype(self.kind).newbyteorder(self.order)


class Pending:
    """An array or dtype whose contents come later, and the places where it was memoized until then."""

    def __init__(self, kind: NumpyDtype | None = None) -> None:
        self.kind = kind
        self.places: list[int] = []

    def built(self, state: Any) -> Any:
        """What it is, once its state is known."""
        if self.kind is not None:
            return NumpyDtype(self.kind.kind if state[2:5] == (None, None, None) else None, str(state[1]))
        _, shape, dtype, fortran, data = state
        return numpy_array(shape, dtype, fortran, data)


def numpy_dtype(code: Any) -> Pending:
    """A dtype of a code such as "f8"."""
    known = type(code) is str and re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", code)
    return Pending(NumpyDtype(code if known else None))


def numpy_array(shape: Any, dtype: Any, fortran: Any, data: Any) -> Any:
    """An array that reads the bytes where they lie; of objects and text a placeholder.

    Raises:
        Refused: where shape and bytes do not go together.
    """
    kind = (dtype.built((3, "=", None, None, None)) if isinstance(dtype, Pending) else dtype).dtype()
    if kind is None:
        return Placeholder("numpy.ndarray")
    sizes_ok = type(shape) is tuple and len(shape) <= MOST_DIMENSIONS and all(_is_size(size) for size in shape)
    if not sizes_ok or type(data) not in (bytes, bytearray) or math.prod(shape) * kind.itemsize != len(data):
        raise Refused("it has an array whose shape does not fit its bytes")
    return np.ndarray(shape, kind, data, order="F" if fortran else "C")


def numpy_scalar(dtype: Any, data: Any) -> Any:
    """A scalar of numpy's; of objects a placeholder."""
    found = numpy_array((), dtype, False, data)
    return found if isinstance(found, Placeholder) else found[()]


def strided(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Any:
    """A tensor over a storage (a flat tensor); of a storage of an unknown kind a placeholder.

    Raises:
        Refused: if it would reach beyond the storage, or have more elements than that.
    """
    if isinstance(storage, Placeholder):
        return Placeholder("torch.Tensor")
    if type(storage) is not torch.Tensor:
        raise Refused("it has a tensor without storage")
    flat: Tensor = storage if dtype is None else storage.view(dtype)
    good = type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= MOST_DIMENSIONS
    if not good or not all(_is_size(value) for value in (offset, *size, *stride)):
        raise Refused("it has a tensor of an impossible shape")
    if 0 in size:
        return flat.new_empty(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= flat.numel() or math.prod(size) > flat.numel():
        raise Refused("it has a tensor that is larger than its storage")
    return flat.as_strided(size, stride, flat.storage_offset() + offset)  # a part of a storage begins further on


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def contents(value: Any) -> dict[Any, Any]:
    """The items of a dictionary, or of a placeholder that stands for one (a namespace, a configuration), else none."""
    if isinstance(value, Placeholder):
        return value.entries or (value.state if isinstance(value.state, dict) else {})
    return value if isinstance(value, dict) else {}
