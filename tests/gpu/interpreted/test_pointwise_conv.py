"""pointwise_conv's Triton kernel in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast.testing.cases import Case
from tests.gpu.interpreted.harness import cases, check, folded, guarded, start

pytest.importorskip("triton")

from mnv3_fast.gpu.packing import pack_pointwise
from mnv3_fast.ops.pointwise_conv import triton_kernel


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """The raw op by its launch."""
    norm, eps, gate, residual, activation = rest[:4], rest[4], rest[5], rest[6], rest[7]
    folded_weight, folded_bias = folded(weight, bias, norm, eps)
    with guarded() as memory:
        output = memory.output((x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype)
        packed = memory.input(pack_pointwise(folded_weight, x.dtype))
        inputs = memory.input(x), packed, memory.input(folded_bias)
        gate, residual = memory.input(gate), memory.input(residual)
        start(triton_kernel.launches(*inputs, output, activation, gate, residual), x.shape[0] == 0)
    return output


@cases("pointwise_conv")
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, pointwise_conv)
