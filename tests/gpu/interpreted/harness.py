"""One case of an op through its launches, in guarded memory, beside torch and fp64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast.gpu.launch import Launch, run
from mnv3_fast.ops.elements import empty_nhwc
from mnv3_fast.ops.fold_batch_norm.reference import fold_batch_norm
from mnv3_fast.testing.cases import Case, op_cases
from mnv3_fast.testing.compare import as_list, functions_of, prepared
from mnv3_fast.testing.layers import double
from mnv3_fast.testing.tolerance import assert_close_enough

DTYPES = (torch.float32, torch.float16)
GUARD = 4096
"""Elements before and behind each tensor; a multiple of 16 bytes, as torch's own allocations start at."""
SENTINEL = -12344.0
"""Fills outputs and what lies around them; exact in fp16, and no result."""


def cases(op: str, only: Callable[[Case], bool] = lambda case: True) -> Any:
    """A parametrize mark over the op's quick cases in each dtype."""
    chosen = [case for case in op_cases(op) if only(case)]
    return lambda function: pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])(
        pytest.mark.parametrize("case", chosen, ids=str)(function)
    )


class Memory:
    """Tensors with guards around them; checks that nothing outside of an output was written, and all inside was."""

    def __init__(self) -> None:
        self.outputs: list[tuple[Tensor, Tensor]] = []

    def input(self, tensor: Tensor | None) -> Tensor | None:
        """A copy of a dense tensor, a map as NHWC, with NaN around it (255 around bytes)."""
        if tensor is None:
            return None
        filler = float("nan") if tensor.is_floating_point() else 255
        buffer = torch.full((tensor.numel() + 2 * GUARD,), filler, dtype=tensor.dtype)
        strides = empty_nhwc(tensor, *tensor.shape).stride() if tensor.dim() == 4 else tensor.contiguous().stride()
        return buffer.as_strided(tensor.shape, strides, GUARD).copy_(tensor)

    def output(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor to be written, a map as NHWC."""
        size = torch.Size(shape)
        buffer = torch.full((size.numel() + 2 * GUARD,), SENTINEL, dtype=dtype)
        like = torch.empty(0, dtype=dtype)
        strides = empty_nhwc(like, *size).stride() if len(size) == 4 else torch.empty(size).stride()
        tensor = buffer.as_strided(size, strides, GUARD)
        self.outputs.append((buffer, tensor))
        return tensor

    def check(self) -> None:
        """After the launches: every element of every output was written, and no other."""
        for buffer, tensor in self.outputs:
            assert bool((buffer[:GUARD] == SENTINEL).all()), "written before the output"
            assert bool((buffer[GUARD + tensor.numel() :] == SENTINEL).all()), "written behind the output"
            assert not bool((tensor == SENTINEL).any()), "not all of the output was written"


@contextmanager
def guarded() -> Iterator[Memory]:
    """Guarded memory, checked at the end of the ``with`` block."""
    memory = Memory()
    yield memory
    memory.check()


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Arguments of a raw op with their float tensors in a dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(cast(item, dtype) for item in value)
    return value


def folded(weight: Tensor, bias: Tensor | None, norm: Sequence[Tensor | None], eps: float) -> tuple[Tensor, Tensor]:
    """Weight and bias in fp32 with BatchNorm (weight, bias, mean, var) in them."""
    weight, bias, *norm = cast([weight, bias, *norm], torch.float32)
    if norm[2] is None:
        return weight, torch.zeros(weight.shape[0]) if bias is None else bias
    return fold_batch_norm(weight, bias, *norm, eps)


def check(case: Case, dtype: torch.dtype, compute: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
    """What ``compute`` makes of the raw arguments is as near to fp64 as torch's own run in the dtype, by the rule."""
    reference = functions_of(case)[1]
    args = cast(prepared(case), dtype)
    ours, theirs, exact = as_list(compute(*args)), as_list(reference(*args)), as_list(reference(*double(args)))
    for i, results in enumerate(zip(ours, theirs, exact, strict=True)):
        assert_close_enough(*results, dtype=dtype, name=f"{case.op} output {i}")


def start(launches: Sequence[Launch], empty: bool) -> None:
    """Runs launches, of which an empty batch must have none."""
    assert bool(launches) != empty
    run(launches)
