"""Compiling a launch for a GPU that need not be there, exactly as starting it on that GPU would.

Integers are passed as they are (``do_not_specialize``), so what is compiled depends on the kernel, its constants, the
dtypes of its tensors and whether each starts at a multiple of 16 bytes: few kernels serve a whole network.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mnv3_fast.gpu.launch import ALIGNMENT, Launch, is_aligned

POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.uint8: "*u8",
}  # fmt: skip


def cuda(capability: int) -> GPUTarget:
    """An NVIDIA GPU of a compute capability: 80, 86, 89, 90, 100, 120."""
    return GPUTarget("cuda", capability, 32)


def signature(launch: Launch) -> dict[str, str]:
    """The type of each parameter, in order."""
    return {
        name: "constexpr" if name in launch.constants else _type_of(launch.arguments[name])
        for name in launch.kernel.arg_names
    }


def key(launch: Launch) -> tuple[Any, ...]:
    """Of a launch: see :meth:`Launch.key`."""
    return (
        launch.kernel.__name__,
        tuple(signature(launch).items()),
        _aligned(launch),
        tuple(sorted(launch.constants.items())),
        launch.warps,
        launch.stages,
    )


def compile_launch(launch: Launch, target: GPUTarget) -> Any:
    """Triton's compiled kernel of a launch: ``asm`` ("ptx", "cubin" or "hsaco") and ``metadata``. Nothing is run.

    Raises:
        triton.CompilationError: if the kernel does not compile for that GPU.
    """
    source = ASTSource(
        fn=launch.kernel,
        signature=signature(launch),
        constexprs=dict(launch.constants),
        attrs={(launch.kernel.arg_names.index(name),): [["tt.divisibility", ALIGNMENT]] for name in _aligned(launch)},
    )
    return triton.compile(source, target=target, options=launch.options)


def _type_of(value: Tensor | int | float) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _aligned(launch: Launch) -> tuple[str, ...]:
    return tuple(name for name, value in launch.arguments.items() if isinstance(value, Tensor) and is_aligned(value))
