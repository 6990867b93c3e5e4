"""The compiled kernels: loading them, and which instruction set and backend are in use.

Environment, read at import (see docs/environment.md): ``MNV3_FAST_ISA`` caps the instruction set,
``MNV3_FAST_BACKEND=reference`` switches the kernels off. Empty means unset; an impossible value raises ``ValueError``.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

logger = logging.getLogger("mnv3_fast")

BACKENDS = ("auto", "reference")
_LIBRARY = Path(__file__).with_name("libmnv3_fast_ops.so")


_REINSTALL = "pip install --force-reinstall --no-deps --no-cache-dir mnv3-fast"


def _load() -> tuple[ModuleType | None, str | None]:
    if not _LIBRARY.exists():
        return None, (
            f"{_LIBRARY.name} is not in {_LIBRARY.parent}: the package was installed without its kernels, which "
            "take Linux, a C++17 compiler and Python's headers (for example `apt-get install g++ python3-dev`). "
            f"With these, run `{_REINSTALL}`"
        )
    try:
        torch.ops.load_library(str(_LIBRARY))
        return importlib.import_module("mnv3_fast._C"), None
    except (ImportError, OSError) as error:
        loader = error.__cause__ or error  # torch names the file only, the loader what is wrong with it
        return None, f"{_LIBRARY.name} could not be loaded: {loader}. Reinstall with `{_REINSTALL}`"


_C, _reason = _load()
EXTENSION: bool = _C is not None
if not EXTENSION:
    logger.warning("running without compiled kernels, on torch's own operators: %s", _reason)


def extension() -> ModuleType:
    """``mnv3_fast._C``; raises RuntimeError where it is missing."""
    if _C is None:
        raise RuntimeError(f"mnv3_fast: no compiled kernels: {_reason}")
    return _C


def prefer_huge_pages(tensor: torch.Tensor) -> None:
    """Ask the system to keep a tensor that every pass reads from end to end in large pages; a hint, which may fail."""
    if _C is not None and tensor.device.type == "cpu" and tensor.is_contiguous():
        _C.prefer_huge_pages(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def missing_reason() -> str | None:
    """Why there are no compiled kernels and how to get them; None if they are loaded."""
    return _reason


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that were built and run on this CPU, slowest first; empty without compiled kernels."""
    return tuple(_C.instruction_sets()) if _C else ()


def instruction_set() -> str | None:
    """The instruction set in use, None without compiled kernels."""
    return _C.instruction_set() if _C else None


def _checked_instruction_set(name: str, source: str) -> str:
    if name not in instruction_sets():
        available = ", ".join(instruction_sets()) or f"none ({_reason})"
        raise ValueError(f"{source}: instruction set {name!r} is not available here, available: {available}")
    return name


@contextmanager
def force_instruction_set(name: str) -> Iterator[None]:
    """Run the kernels of one instruction set (process-wide) inside of the ``with`` block.

    Raises:
        ValueError: if it was not built or this CPU cannot run it; lists what exists.
    """
    module, before = extension(), instruction_set()
    module.set_instruction_set(_checked_instruction_set(name, "force_instruction_set"))
    try:
        yield
    finally:
        module.set_instruction_set(before)


def take_variant(op: str) -> str | None:
    """The instruction set of the kernel code that ran last for an op; None if none has since this was last asked."""
    return extension().take_variant(op) or None


_backend = "auto"


def backend() -> str:
    """``"auto"``, or ``"reference"`` when the kernels are switched off."""
    return _backend


def _checked_backend(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: backend {name!r} does not exist, available: {', '.join(BACKENDS)}")
    return name


@contextmanager
def force_backend(name: str) -> Iterator[None]:
    """Use one backend (process-wide) inside of the ``with`` block: ``"reference"`` is the off switch.

    Raises:
        ValueError: for an unknown name; lists what exists.
    """
    global _backend
    before, _backend = _backend, _checked_backend(name, "force_backend")
    try:
        yield
    finally:
        _backend = before


def _read_environment() -> None:
    global _backend
    name = os.environ.get("MNV3_FAST_BACKEND")
    if name:
        _backend = _checked_backend(name, "MNV3_FAST_BACKEND")
    name = os.environ.get("MNV3_FAST_ISA")
    if name:
        checked = _checked_instruction_set(name, "MNV3_FAST_ISA")
        extension().set_instruction_set(checked)


_read_environment()
