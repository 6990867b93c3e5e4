"""``mnv3_fast::run_plan``: schema, fake and reference. The kernel is csrc/engine."""

from __future__ import annotations

import torch
from torch import Tensor

from mnv3_fast.engine import reference
from mnv3_fast.ops import registration
from mnv3_fast.ops.elements import empty_nhwc, output_size


def output_shape(height: int, width: int, geometry: list[int]) -> tuple[int, int]:
    """Height and width of the output map of a plan of this geometry."""
    for i in range(2, len(geometry), 10):
        kernel_h, kernel_w, stride_h, stride_w, left, right, top, bottom, dilation_h, dilation_w = geometry[i : i + 10]
        height = output_size(height, kernel_h, stride_h, top + bottom, dilation_h)
        width = output_size(width, kernel_w, stride_w, left + right, dilation_w)
    return height, width


def _fake(input: Tensor, plan: Tensor, geometry: list[int]) -> Tensor:
    if len(geometry) % 10 != 2:
        raise ValueError(f"run_plan: geometry must be an engine's, with 2 numbers and 10 a layer, got {len(geometry)}")
    like = input.new_empty(0, dtype=torch.float32)
    if geometry[0] == 0:
        return like.new_empty(input.shape[0], geometry[1])
    return empty_nhwc(like, input.shape[0], geometry[1], *output_shape(input.shape[2], input.shape[3], geometry))


OP = registration.register(
    "run_plan(Tensor input, Tensor plan, int[] geometry) -> Tensor",
    reference.run_plan,
    _fake,
    ranks=(("input", (4,)), ("plan", (1,))),
)


def _only_kernels(tensors: list[Tensor]) -> int:
    raise RuntimeError("tensor_state, watch: for the compiled kernels, and dense tensors on the CPU, at least one")


# What packed weights were made of (csrc/watch.h). The result of the second is for mnv3_fast._C.Watch, which frees it.
STATE = registration.register("tensor_state(Tensor[] tensors) -> int", _only_kernels, _only_kernels, guarded=False)
WATCH = registration.register("watch(Tensor[] tensors) -> int", _only_kernels, _only_kernels, guarded=False)
