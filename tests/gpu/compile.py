"""A launch compiled ahead of time for a GPU that is not there, specialised exactly as the launch itself would be."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mnv3_fast.gpu.launch import Launch

TRITON_VERSION = "3.9.0"
"""The version whose PTX the emulator knows; pyproject.toml pins it in the test extra."""
WAVE = {"gfx942": 64, "gfx1100": 32}


class WrongTriton(Exception):
    """Triton is missing, has another version, or runs as an interpreter."""


def require_triton() -> Any:
    """Triton itself.

    Raises:
        WrongTriton: with what is installed and what is wanted.
    """
    wanted = f"the tools in tests/gpu read what Triton {TRITON_VERSION} compiles"
    try:
        import triton
    except ImportError as error:
        raise WrongTriton(f"{wanted}, and it is not installed ({error}); pip install -e '.[test]' does that") from None
    if triton.__version__ != TRITON_VERSION:
        raise WrongTriton(f"{wanted}, got {triton.__version__}; pip install -e '.[test]' installs the right one")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise WrongTriton(f"{wanted}, and TRITON_INTERPRET is set, which compiles nothing; unset it")
    return triton


@dataclass(frozen=True)
class Compiled:
    """What a compiler made of a launch: its assembly and the parameters that are left at run time, in order."""

    name: str
    asm: dict[str, Any]
    shared: int
    warps: int
    parameters: tuple[str, ...]
    key: tuple


def target(architecture: int | str) -> Any:
    """Triton's name of an architecture: 80 to 120 for NVIDIA, "gfx942" or "gfx1100" for AMD."""
    require_triton()
    from triton.backends.compiler import GPUTarget

    if isinstance(architecture, str):
        return GPUTarget("hip", architecture, WAVE[architecture])
    return GPUTarget("cuda", architecture, 32)


def specialise(launch: Launch, architecture: int | str = 80) -> tuple[Any, Any, Any, dict, dict, dict]:
    """What ``kernel[grid](...)`` would hand to the compiler: target, backend, options, signature, constants, attributes.

    It is Triton's own binder that decides, so that a pointer or a size that a multiple of 16 divides, or a size of 1, is
    known to the compiler here if and only if it is known in a launch.
    """
    require_triton()
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature, knobs

    kernel = launch.kernel
    place = target(architecture)
    backend = make_backend(place)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    keywords = {
        **launch.arguments,
        **launch.constants,
        **launch.options,
        "debug": kernel.debug or knobs.runtime.debug,
        "instrumentation_mode": knobs.compilation.instrumentation_mode,
        "fpsan_homomorphic_casts": knobs.compilation.fpsan_homomorphic_casts,
    }
    bound, specialisation, options = binder(**keywords)
    options, signature, constants, attributes = kernel._pack_args(backend, keywords, bound, specialisation, options)
    return place, backend, options, signature, constants, attributes


_compiled: dict[tuple, Compiled] = {}


def compile_launch(launch: Launch, architecture: int | str = 80) -> Compiled:
    """The launch's kernel compiled for an architecture; the same specialisation is compiled once."""
    triton = require_triton()
    from triton.compiler import ASTSource

    place, _, options, signature, constants, attributes = specialise(launch, architecture)
    key = (launch.kernel.cache_key, architecture, str(signature), str(constants), str(attributes), str(options))
    if key not in _compiled:
        source = ASTSource(launch.kernel, signature, constants, attributes)
        built = triton.compile(source, target=place, options=options.__dict__)
        names = tuple(name for name, kind in signature.items() if kind != "constexpr")
        _compiled[key] = Compiled(
            launch.kernel.__name__, built.asm, built.metadata.shared, built.metadata.num_warps, names, key
        )
    return _compiled[key]


def programs(launch: Launch) -> int:
    """How many programs a launch starts."""
    return math.prod(launch.grid)


def replace_tensors(launch: Launch, change: Callable[[torch.Tensor], torch.Tensor]) -> Launch:
    """The same launch on other tensors."""
    arguments = {
        name: change(value) if isinstance(value, torch.Tensor) else value for name, value in launch.arguments.items()
    }
    return Launch(launch.kernel, launch.grid, arguments, launch.constants, launch.warps, launch.stages)
