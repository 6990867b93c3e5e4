"""stem_conv's Triton kernel in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast.ops.elements import convolved_size, resolve_window
from mnv3_fast.testing.cases import Case
from tests.gpu.interpreted.harness import GUARD, cases, check, folded, guarded, start

pytest.importorskip("triton")

from mnv3_fast.gpu.packing import pack_stem
from mnv3_fast.ops.stem_conv import triton_kernel


def guarded_as_it_is(x: Tensor) -> Tensor:
    """A copy of an image in its own strides, with NaN (or 255) around it and in its gaps."""
    extent = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
    buffer = torch.full((max(extent, 0) + 2 * GUARD,), float("nan") if x.is_floating_point() else 255, dtype=x.dtype)
    return torch.as_strided(buffer, x.shape, x.stride(), GUARD).copy_(x)


def stem_conv(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """The raw op by its launch."""
    norm, eps, scale, shift, activation = rest[:4], rest[4], rest[5], rest[6], rest[15]
    kernel = tuple(weight.shape[2:])
    window = resolve_window(x.shape[2:], kernel, rest[7:15])
    folded_weight, folded_bias = folded(weight, bias, norm, eps)
    if 0 in x.stride():  # broadcast: one copy in memory, as the caller has it
        x = x.clone(memory_format=torch.contiguous_format)
    with guarded() as memory:
        output = memory.output(
            (x.shape[0], weight.shape[0], *convolved_size(x.shape[2:], kernel, window)), weight.dtype
        )
        packed = memory.input(pack_stem(folded_weight, weight.dtype)), memory.input(folded_bias)
        normalisation = [None if v is None else memory.input(v.float()) for v in (scale, shift)]
        image = guarded_as_it_is(x)
        start(triton_kernel.launches(image, *packed, output, kernel, window, activation, *normalisation), len(x) == 0)
    return output


@cases("stem_conv")
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, stem_conv)
