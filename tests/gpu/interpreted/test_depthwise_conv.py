"""depthwise_conv's Triton kernel in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast.ops.elements import convolved_size, resolve_window
from mnv3_fast.testing.cases import Case
from tests.gpu.interpreted.harness import cases, check, folded, guarded, start

pytest.importorskip("triton")

from mnv3_fast.gpu.packing import pack_depthwise
from mnv3_fast.ops.depthwise_conv import triton_kernel


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, mean: bool = False) -> Any:
    """The raw op by its launch."""
    norm, eps, activation = rest[:4], rest[4], rest[13]
    n, c, kernel = *x.shape[:2], tuple(weight.shape[2:])
    window = resolve_window(x.shape[2:], kernel, rest[5:13])
    folded_weight, folded_bias = folded(weight, bias, norm, eps)
    out_height, out_width = convolved_size(x.shape[2:], kernel, window)
    with guarded() as memory:
        output = memory.output((n, c, out_height, out_width), x.dtype)
        sums = memory.output(triton_kernel.sums_shape(output, kernel, window), torch.float32) if mean else None
        packed = memory.input(pack_depthwise(folded_weight, x.dtype))
        inputs = memory.input(x), packed, memory.input(folded_bias)
        start(triton_kernel.launches(*inputs, output, kernel, window, activation, sums), n == 0)
    if sums is None:
        return output
    return output, (sums.sum(1) / (out_height * out_width)).to(x.dtype)


@cases("depthwise_conv")
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    mean = bool(case.make()[1].get("return_mean"))
    check(case, dtype, lambda *args: depthwise_conv(*args, mean=mean))
