"""squeeze_excite_gate's Triton kernel in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast.testing.cases import Case
from tests.gpu.interpreted.harness import Memory, cases, check, guarded, start

pytest.importorskip("triton")

from mnv3_fast.gpu.packing import pack_pointwise, pack_vector
from mnv3_fast.ops.squeeze_excite_gate import triton_kernel


def layers_of(memory: Memory, fc1: Tensor, bias1: Tensor | None, fc2: Tensor, bias2: Tensor | None) -> list[Tensor]:
    """Both layers packed, in guarded memory."""
    squeeze, channels = fc1.shape[:2]
    packed = (
        pack_pointwise(fc1, fc1.dtype),
        pack_vector(bias1, squeeze, fc1.device),
        pack_pointwise(fc2, fc1.dtype),
        pack_vector(bias2, channels, fc1.device),
    )
    return [memory.input(tensor) for tensor in packed]


def squeeze_excite_gate(mean: Tensor, *rest: Any, parts: int = 1) -> Tensor:
    """The raw op by its launch, from means, or from a number of parts that add up to twice of them."""
    fc1, bias1, fc2, bias2, activation, gate, slope = rest
    n, c = mean.shape
    sums = mean.reshape(n, 1, c)
    if parts > 1:
        shares = torch.rand(parts, generator=torch.Generator().manual_seed(0)).softmax(0)
        sums = 2 * mean.float()[:, None, :] * shares[None, :, None]
    with guarded() as memory:
        layers = layers_of(memory, fc1, bias1, fc2, bias2)
        gates = memory.output((n, c), mean.dtype)
        workspace = torch.full((triton_kernel.workspace_size(n, c, fc1.shape[0]) + 64,), float("nan"), dtype=mean.dtype)
        options = activation, gate, slope
        count = 1 if parts == 1 else 2
        start(triton_kernel.launches(memory.input(sums), count, *layers, gates, workspace, *options), n == 0)
        assert bool(workspace[-64:].isnan().all()), "written behind the work space"
    return gates


@cases("squeeze_excite_gate")
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, squeeze_excite_gate)


@cases("squeeze_excite_gate", lambda case: case.name in ("channels17", "squeeze9", "large.b4.gate"))
def test_parts_add_up(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, lambda *args: squeeze_excite_gate(*args, parts=7))
