"""The library of CUDA kernels, ``mnv3_fast/_cuda.so``: built where there is nvcc, loaded where torch has CUDA.

Its functions take a structure of pointers and sizes, and a stream. Nothing is loaded before a kernel is asked for.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mnv3_fast.gpu.launch import CudaLaunch

FILE = Path(__file__).parent.parent / "_cuda.so"
UNKNOWN = -1
"""What the library's functions return where there is no kernel for their arguments."""
OLDEST = "8.0"
"""The compute capability from which on there are kernels."""


def missing_reason() -> str | None:
    """Why there are no CUDA kernels; None if there are."""
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    if not FILE.exists():
        return f"{FILE.name} is not in {FILE.parent}: the package was installed without it, with no nvcc or against it"
    return None


def unusable_reason(capability: str = OLDEST) -> str | None:
    """The same, and why a library that is there cannot be loaded, or has none for a compute capability ("9.0")."""
    try:
        load()
    except RuntimeError as error:
        return str(error).removeprefix("mnv3_fast: no CUDA kernels: ")
    if _numbers(capability) < _numbers(OLDEST):
        return f"they are for compute capability {OLDEST} and later, this is {capability}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@functools.cache
def load() -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: where it is missing (:func:`missing_reason`) or cannot be loaded.
    """
    reason = missing_reason()
    if reason is not None:
        raise RuntimeError(f"mnv3_fast: no CUDA kernels: {reason}")
    try:
        library = ctypes.CDLL(str(FILE))
        library.mnv3_cuda_error.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"mnv3_fast: {FILE.name} could not be loaded: {error}") from error
    return library


@functools.cache
def hash_of() -> str:
    """Of the library's file; "" where there are no CUDA kernels."""
    return "" if missing_reason() is not None else hashlib.sha256(FILE.read_bytes()).hexdigest()


def check(op: str, status: int) -> None:
    """Raise RuntimeError with CUDA's own words for the status that a launch returned, unless that is 0."""
    if status:
        raise RuntimeError(f"{op}: its CUDA kernel was not started: {load().mnv3_cuda_error(status).decode()}")


def stream_of(device: torch.device) -> int:
    """The current stream of a CUDA device, as CUDA knows it.

    Raises:
        RuntimeError: for another device, whose memory a GPU does not read.
    """
    if device.type != "cuda":
        raise RuntimeError(f"mnv3_fast: a CUDA kernel's tensors must be on a CUDA device, got {device}")
    return torch.cuda.current_stream(device).cuda_stream


@dataclass(frozen=True)
class CudaKernel:
    """A function of the library, ``int32_t symbol(const structure*, void* stream)``, that starts a kernel.

    Attributes:
        name: of what it computes.
        symbol: of the function.
        structure: what it takes. Its fields have the names of a launch's arguments; fields of the names ``grid_x``,
            ``grid_y``, ``grid_z``, ``threads`` and ``shared`` are filled with what the launch itself says.
    """

    name: str
    symbol: str
    structure: type[ctypes.Structure]

    @property
    def __name__(self) -> str:
        return f"{self.name}_cuda_kernel"

    def function(self) -> Any:
        """The function.

        Raises:
            RuntimeError: without the library, and where it is of another version.
        """
        try:
            return getattr(load(), self.symbol)
        except AttributeError as error:
            raise RuntimeError(f"{self.name}: {FILE.name} is of another version: it lacks {self.symbol}") from error

    def filled(self, launch: CudaLaunch) -> ctypes.Structure:
        """The structure of a launch.

        Raises:
            TypeError: where arguments and fields are not the same.
        """
        values = dict(zip(("grid_x", "grid_y", "grid_z"), launch.grid, strict=True))
        values |= {"threads": launch.threads, "shared": launch.shared}
        fields = [field[0] for field in self.structure._fields_]
        values = {name: value for name, value in values.items() if name in fields} | launch.arguments
        if set(values) != set(fields):
            raise TypeError(f"{self.name}: its structure has the fields {sorted(fields)}, got {sorted(values)}")
        return self.structure(
            **{name: value.data_ptr() if isinstance(value, Tensor) else value for name, value in values.items()}
        )

    def start(self, launch: CudaLaunch) -> None:
        """Start a launch on the current stream of its tensors' device.

        Raises:
            RuntimeError: without the library, for tensors elsewhere, and with CUDA's words where it refuses the launch.
        """
        device = next(value.device for value in launch.arguments.values() if isinstance(value, Tensor))
        stream = ctypes.c_void_p(stream_of(device))
        check(self.name, self.function()(ctypes.byref(self.filled(launch)), stream))
