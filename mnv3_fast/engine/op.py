"""``mnv3_fast::run_plan``: schema, fake and reference. The kernel is csrc/engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mnv3_fast import gpu
from mnv3_fast.gpu import DTYPES
from mnv3_fast.ops import registration
from mnv3_fast.ops.elements import convolved_size, empty_nhwc


def output_shape(height: int, width: int, geometry: list[int]) -> tuple[int, int]:
    """Height and width of the output map of a plan of this geometry."""
    for i in range(2, len(geometry), 10):
        height, width = convolved_size((height, width), geometry[i : i + 2], geometry[i + 2 : i + 10])
    return height, width


def dtype_of(geometry: Sequence[int]) -> torch.dtype:
    """The dtype of an engine's activations and output; float32 where the geometry is left out.

    A geometry's first number is twice the dtype's place, and 1 more where the output is a map.

    Raises:
        ValueError: for a number that stands for none.
    """
    index = geometry[0] >> 1 if geometry else 0
    if not 0 <= index < len(DTYPES):
        raise ValueError(f"run_plan: geometry must start with a number from 0 to 5, got {geometry[0]}")
    return DTYPES[index]


def check_place(plan: Tensor, dtype: torch.dtype) -> None:
    """Refuses an engine of a 16-bit dtype on the CPU, where a file may have been loaded that was made on a GPU.

    Raises:
        RuntimeError: if it is there.
    """
    if dtype is not torch.float32 and plan.is_cpu:
        raise RuntimeError(
            f"Engine: this one is {str(dtype).removeprefix('torch.')}, for a GPU, and was loaded on the CPU, where "
            "engines are float32; freeze the model there: mnv3_fast.freeze(model.float().cpu())"
        )


def _reference(input: Tensor, plan: Tensor, geometry: list[int]) -> Tensor:
    from mnv3_fast.engine.reference import run_plan  # built of the other ops, which are being registered now

    return run_plan(input, plan, geometry)


def _fake(input: Tensor, plan: Tensor, geometry: list[int]) -> Tensor:
    if len(geometry) % 10 != 2:
        raise ValueError(f"run_plan: geometry must be an engine's, with 2 numbers and 10 a layer, got {len(geometry)}")
    like = input.new_empty(0, dtype=dtype_of(geometry))
    if geometry[0] % 2 == 0:
        return like.new_empty(input.shape[0], geometry[1])
    return empty_nhwc(like, input.shape[0], geometry[1], *output_shape(input.shape[2], input.shape[3], geometry))


OP = registration.register(
    "run_plan(Tensor input, Tensor plan, int[] geometry) -> Tensor",
    _reference,
    _fake,
    ranks=(("input", (4,)), ("plan", (1,))),
)


def _only_kernels(tensors: list[Tensor]) -> int:
    raise RuntimeError("tensor_state, watch: for the compiled kernels, and dense tensors on the CPU, at least one")


# What packed weights were made of (csrc/watch.h). The result of the second is for mnv3_fast._C.Watch, which frees it.
STATE = registration.register("tensor_state(Tensor[] tensors) -> int", _only_kernels, _only_kernels, guarded=False)
WATCH = registration.register("watch(Tensor[] tensors) -> int", _only_kernels, _only_kernels, guarded=False)


def _on_gpu(input: Tensor, plan: Tensor, geometry: list[int]) -> Tensor:
    if gpu.missing_reason() is not None:
        return registration.run_reference(_reference, (input, plan, geometry))
    from mnv3_fast.gpu.execute import run_plan  # Triton is not imported before a tensor on a GPU needs it

    return run_plan(input, plan, geometry)


registration.LIBRARY.impl("run_plan", _on_gpu, "CUDA")
