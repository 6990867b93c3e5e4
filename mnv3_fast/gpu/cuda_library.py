"""The library of CUDA kernels, ``mnv3_fast/_cuda.so``: built where asked for, loaded where torch has CUDA.

Its functions take pointers, sizes and a stream. Nothing of it is loaded before a kernel of it is asked for.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

FILE = Path(__file__).parent.parent / "_cuda.so"
UNKNOWN = -1
"""What the library's functions return where there is no kernel for their arguments."""


def missing_reason() -> str | None:
    """Why there are no CUDA kernels; None if there are."""
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    if not FILE.exists():
        return f"{FILE.name} is not in {FILE.parent}: the package was installed without it (depthwise_conv's README)"
    return None


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
    except OSError as error:
        raise RuntimeError(f"mnv3_fast: {FILE.name} could not be loaded: {error}") from error
    library.mnv3_cuda_error.restype = ctypes.c_char_p
    library.mnv3_cuda_depthwise_conv_parts.restype = ctypes.c_int64
    return library


def check(op: str, status: int) -> None:
    """Raise RuntimeError with CUDA's own words for the status that a launch returned, unless that is 0."""
    if status:
        raise RuntimeError(f"{op}: its CUDA kernel was not started: {load().mnv3_cuda_error(status).decode()}")
