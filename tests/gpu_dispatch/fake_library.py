"""In the place of the library of CUDA kernels: its functions write down what they are given, and start nothing."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mnv3_fast.gpu import choice, counts, cuda_library, tuned

STREAM = 0x5EED
WORDS = b"too many resources requested for launch"
H100 = counts.Properties(90, 132, 1.755e9, 3.35e12)


@dataclass
class Called:
    """A function's name, the fields of the structure that it was given, and the stream."""

    symbol: str
    fields: dict[str, Any]
    stream: int | None


@dataclass
class FakeLibrary:
    """Stands for what :func:`cuda_library.load` returns.

    Attributes:
        structures: of each function, so that its pointer can be read.
        status: what the functions return.
        called: every call of one, in order.
    """

    structures: dict[str, type[ctypes.Structure]]
    status: int = 0
    called: list[Called] = field(default_factory=list)

    def mnv3_cuda_error(self, status: int) -> bytes:
        assert status == self.status
        return WORDS

    def __getattr__(self, symbol: str) -> Callable[[Any, Any], int]:
        if symbol not in self.structures:
            raise AttributeError(f"_cuda.so: undefined symbol: {symbol}")

        def start(pointer: Any, stream: ctypes.c_void_p) -> int:
            of = ctypes.cast(pointer, ctypes.POINTER(self.structures[symbol])).contents
            values = {name: getattr(of, name) for name, *_ in of._fields_}
            self.called.append(Called(symbol, values, stream.value))
            return self.status

        return start


def install(library: FakeLibrary, patch: pytest.MonkeyPatch) -> FakeLibrary:
    """A library that is there, on a GPU that its kernels are for, whatever device tensors are on.

    It is better in 16 bits, whatever was counted.
    """
    patch.setattr(cuda_library, "missing_reason", lambda: None)
    patch.setattr(cuda_library, "load", lambda: library)
    patch.setattr(cuda_library, "hash_of", lambda: "cd" * 32)
    patch.setattr(cuda_library, "stream_of", lambda device: STREAM)
    patch.setattr(choice, "unusable_reason", lambda device: None)
    patch.setattr(counts, "properties", lambda device: H100)
    patch.setattr(counts, "better", lambda question, gpu: "triton" if question.dtype == torch.float32 else "cuda")
    patch.setattr(tuned, "choices", lambda: tuned.Choices(lambda device: {}))
    return library
