"""Plans, blocks and networks on a GPU: the executor that belongs to a plan or to original tensors, kept with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.engine.op import dtype_of
from mnv3_fast.engine.reference import run_plan as reference
from mnv3_fast.engine.reference import unpack
from mnv3_fast.gpu import first_use, kept
from mnv3_fast.gpu.executor import Executor
from mnv3_fast.gpu.network import Network
from mnv3_fast.ops import checks, registration
from mnv3_fast.ops.network.chain import Misfit, check_chain
from mnv3_fast.ops.network.layout import Stage, check_stages, input_channels


def run_plan(input: Tensor, plan: Tensor, geometry: Sequence[int]) -> Tensor:
    """``mnv3_fast::run_plan`` on a GPU; by the reference where a kernel that it needs is switched off.

    Raises:
        TypeError, ValueError: for an input that does not fit the plan.
    """
    executor = plan_executor(plan, dtype_of(geometry))
    _check_input("run_plan", input, executor)
    if not is_usable(executor):
        return registration.run_reference(reference, (input, plan, list(geometry)))
    return executor.run(input)


def plan_executor(plan: Tensor, dtype: torch.dtype) -> Executor:
    """The executor of a plan on its device, unpacked once for each dtype."""

    def build() -> Executor:
        unpacked = unpack(plan)
        return Executor(Network(unpacked.stages, dtype, unpacked.scale, unpacked.shift))

    return kept.find([plan], ("plan", dtype), build)


def run_stages(
    name: str,
    reference: Callable[..., Tensor],
    read: Callable[[Sequence[Tensor], Sequence[int], Sequence[float]], Sequence[Stage]],
    input: Tensor,
    arguments: tuple[Sequence[Tensor], Sequence[int], Sequence[float]],
) -> Tensor:
    """An op over original tensors (``inverted_residual``, ``network``) on a GPU, in the input's dtype.

    Args:
        name: of the op, for errors.
        reference: of the op; runs on (input, *arguments) where a kernel is switched off.
        read: makes stages of the arguments, once for what is packed from them.
        input: float32, float16 or bfloat16 (bytes for a stem, which run in the dtype of its weight).
        arguments: of the op after its input: tensors, of which there is one, spec, constants.

    Raises:
        TypeError, ValueError: for an input that does not fit, and for tensors and ints that do not fit each other.
    """
    tensors, spec, constants = arguments
    dtype = input.dtype if input.is_floating_point() else tensors[0].dtype
    if dtype not in checks.GPU_DTYPES:
        what, got = "input" if dtype is input.dtype else "weights", str(dtype).removeprefix("torch.")
        raise TypeError(f"{name}: {what} must be float32, float16 or bfloat16, got {got}")

    def build() -> Executor:
        stages = read(*arguments)
        check_stages(stages, checks.parameter_dtypes(dtype), input.device)
        try:
            check_chain(stages, input_channels(stages))
        except Misfit as misfit:
            raise ValueError(f"{name}: its stages do not fit: {misfit}") from None
        return Executor(Network(stages, dtype))

    executor = kept.find(tensors, (name, dtype, tuple(spec), tuple(constants)), build)
    _check_input(name, input, executor)
    if not is_usable(executor):
        cast = [[t.to(dtype) for t in a] if isinstance(a, (list, tuple)) and _tensors(a) else a for a in arguments]
        return registration.run_reference(reference, (input, *cast))
    return executor.run(input)


def is_usable(executor: Executor) -> bool:
    """Whether every kernel that a network needs may run on its device."""
    network = executor.network
    return all(first_use.usable(kernel, network.device, network.dtype) for kernel in executor.kernels)


def _tensors(items: Sequence[Any]) -> bool:
    return bool(items) and isinstance(items[0], Tensor)


def _check_input(op: str, input: Tensor, executor: Executor) -> None:
    network = executor.network
    got = str(input.dtype).removeprefix("torch.")
    wanted = str(network.dtype).removeprefix("torch.")
    if input.dtype is not network.dtype and not (input.dtype is torch.uint8 and network.starts_with_stem()):
        bytes_too = " or uint8" if network.starts_with_stem() else ""
        raise TypeError(f"{op}: input must be {wanted}{bytes_too}, got {got}")
    if input.dim() != 4 or input.shape[1] != network.input_channels:
        raise ValueError(f"{op}: input must be [N, {network.input_channels}, H, W], got {list(input.shape)}")
    if input.device != network.device:
        raise ValueError(f"{op}: input must be on {network.device} as the weights are, got {input.device}")
    if 0 in input.shape[2:]:
        raise ValueError(f"{op}: input must have at least one pixel, got {list(input.shape)}")
    if executor.output_shape(tuple(input.shape)) is None:
        raise ValueError(f"{op}: input {list(input.shape)} is too small, a map on the way would be empty")
