"""squeeze_excite's Triton kernels in the interpreter, and the global pool."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast.testing.cases import Case, map_of
from mnv3_fast.testing.tolerance import assert_close_enough
from tests.gpu.interpreted.harness import DTYPES, cases, check, guarded, start
from tests.gpu.interpreted.test_squeeze_excite_gate import layers_of

pytest.importorskip("triton")

from mnv3_fast.ops.squeeze_excite import triton_kernel
from mnv3_fast.ops.squeeze_excite_gate.triton_kernel import workspace_size


def squeeze_excite(x: Tensor, *rest: Any) -> Tensor:
    """The raw op by its launches."""
    *layers, activation, gate, slope = rest
    with guarded() as memory:
        packed = layers_of(memory, *layers)
        x = memory.input(x)
        output = memory.output(x.shape, x.dtype)
        sums = memory.output(triton_kernel.sums_shape(x), torch.float32)
        gates = memory.output(x.shape[:2], torch.float32)
        workspace = torch.empty(workspace_size(*x.shape[:2], layers[0].shape[0]), dtype=x.dtype)
        options = activation, gate, slope
        start(triton_kernel.launches(x, *packed, output, sums, gates, workspace, *options), x.shape[0] == 0)
    return output


@cases("squeeze_excite", lambda case: case.name != "constant")  # a constant map hides which pixels were added up
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, squeeze_excite)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 960, 7, 7), (3, 9, 1, 1), (1, 24, 40, 33)], ids=str)
def test_the_pool_equals_the_mean(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = map_of(torch.Generator().manual_seed(0), *shape).to(dtype)
    with guarded() as memory:
        output = memory.output((shape[0], 1, shape[1]), dtype)
        start(triton_kernel.channel_sums(memory.input(x), output, 1 / (shape[2] * shape[3])), False)
    assert_close_enough(output[:, 0], x.mean((2, 3)), x.double().mean((2, 3)), dtype=dtype)


def test_parts_of_a_large_map_add_up() -> None:
    x = map_of(torch.Generator().manual_seed(0), 2, 9, 50, 60)
    with guarded() as memory:
        x = memory.input(x)
        sums = memory.output(triton_kernel.sums_shape(x), torch.float32)
        assert sums.shape[1] == 3
        start(triton_kernel.channel_sums(x, sums), False)
    flat = x.flatten(2).transpose(1, 2).double()
    exact = torch.stack([part.sum(1) for part in flat.split(1024, 1)], 1)
    assert_close_enough(sums, exact.float(), exact)
