"""What no case of the ops reaches: NaN and infinity, indices of 64 bits, 16-bit products without tensor cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mnv3_fast.ops.elements import activate, apply_gate
from mnv3_fast.testing.cases import map_of
from mnv3_fast.testing.tolerance import assert_close_enough
from tests.gpu.interpreted.harness import DTYPES, guarded

pytest.importorskip("triton")

from mnv3_fast.gpu.launch import run
from mnv3_fast.ops.depthwise_conv import triton_kernel as depthwise_conv
from mnv3_fast.ops.pointwise_conv import triton_kernel as pointwise_conv
from mnv3_fast.ops.squeeze_excite_gate import triton_kernel as squeeze_excite_gate

SPECIAL = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, -3.0, 3.0, -2.5, 0.5, 7.0, -11.0)
WINDOW = (1, 1, 1, 1, 1, 1, 1, 1)
IDENTITY = (1, 1, 0, 0, 0, 0, 1, 1)


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to rounding, NaN where NaN is."""
    return torch.allclose(ours.double(), theirs.double(), rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [0, 1, 2, 3])
def test_special_values_pass_the_activation_as_in_torch(activation: int, dtype: torch.dtype) -> None:
    x = torch.tensor(SPECIAL).to(dtype).view(1, 1, 1, -1).expand(1, 8, 1, -1)
    with guarded() as memory:
        output = memory.output(x.shape, dtype)
        weight, bias = memory.input(torch.ones(1, 8, dtype=dtype)), memory.input(torch.zeros(8))
        run(depthwise_conv.launches(memory.input(x), weight, bias, output, (1, 1), IDENTITY, activation))
    expected = activate(x.float(), activation).to(dtype)
    assert bool(expected.isnan().any())
    assert same(output, expected)


@pytest.mark.parametrize("gate", [0, 1])
def test_special_values_pass_the_gate_as_in_torch(gate: int) -> None:
    bias = torch.tensor([*SPECIAL, 100.0])
    channels = len(bias)
    with guarded() as memory:
        gates = memory.output((1, channels), torch.float32)
        layers = torch.zeros(4, channels), torch.zeros(4), torch.zeros(channels, 4), bias
        packed = [memory.input(tensor) for tensor in layers]
        workspace = torch.empty(squeeze_excite_gate.workspace_size(1, channels, 4))
        means = memory.input(torch.zeros(1, 1, channels))
        run(squeeze_excite_gate.launches(means, 1, *packed, gates, workspace, 1, gate, 0.2))
    expected = apply_gate(bias, gate, 0.2)
    assert bool(expected.isnan().any())
    assert same(gates[0], expected)


def test_indices_of_64_bits_give_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = map_of(generator, 2, 9, 5, 8), torch.randn(9, 9, generator=generator), torch.zeros(9)
    results = []
    for wide in (False, True):
        with guarded() as memory:
            output = memory.output(x.shape, x.dtype)
            inputs = [memory.input(tensor) for tensor in (x, weight, bias)]
            sums = memory.output(depthwise_conv.sums_shape(output, (3, 3), WINDOW), torch.float32)
            (launch,) = depthwise_conv.launches(*inputs, output, (3, 3), WINDOW, 2, sums)
            assert not launch.constants["WIDE"]
            run([replace(launch, constants={**launch.constants, "WIDE": wide})])
        results.append((output, sums))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_more_threads_than_an_int32_counts_are_wide() -> None:
    """A map of 2^35 elements that is not there: the launch must count in 64 bits."""
    x = torch.empty(1, dtype=torch.float16, device="meta").expand(2**13, 64, 256, 256)
    bias = torch.empty(64, device="meta")
    dilated = (1, 1, 1, 1, 1, 1, 2, 2)
    (launch,) = depthwise_conv.launches(x, x[0, :9, :, 0], bias, x, (3, 3), dilated, 0)
    assert launch.arguments["threads"] == 2**32
    assert launch.constants["WIDE"]


@pytest.mark.parametrize("gated", [False, True])
def test_products_without_tensor_cores(gated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = map_of(generator, 2, 72, 5, 7).half()
    weight, bias = torch.randn(40, 72, generator=generator).half(), torch.randn(40, generator=generator)
    gate = torch.rand(2, 72, generator=generator) if gated else None
    with guarded() as memory:
        output = memory.output((2, 40, 5, 7), x.dtype)
        inputs = [memory.input(tensor) for tensor in (x, weight, bias)]
        (launch,) = pointwise_conv.launches(*inputs, output, 1, memory.input(gate), upcast=True)
        assert launch.constants["UPCAST"]
        run([launch])
    scaled = x if gate is None else x * gate.half()[:, :, None, None]
    exact = x.double() if gate is None else x.double() * gate.double()[:, :, None, None]
    theirs = torch.relu(torch.nn.functional.conv2d(scaled, weight[:, :, None, None], bias.half()))
    exact = torch.relu(torch.nn.functional.conv2d(exact, weight.double()[:, :, None, None], bias.double()))
    assert_close_enough(output, theirs, exact, dtype=torch.float16)


@pytest.fixture
def _own_setting() -> Iterator[None]:
    """The setting of TF32 as it was, whatever a test does to it."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def _allow_by_flag() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True


def _allow_by_name() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.usefixtures("_own_setting")
@pytest.mark.parametrize("allow", [_allow_by_flag, _allow_by_name])
def test_tf32_only_where_torch_allows_it(allow: Callable[[], None]) -> None:
    def precisions() -> list[str]:
        launches = []
        for dtype in (torch.float32, torch.float16):
            x, weight, bias = torch.empty(1, 8, 2, 2, dtype=dtype), torch.empty(8, 8, dtype=dtype), torch.empty(8)
            launches += pointwise_conv.launches(x, weight, bias, torch.empty_like(x), 0)
        return [launch.constants["PRECISION"] for launch in launches]

    assert precisions() == ["ieee", "ieee"]
    allow()
    assert precisions() == ["tf32", "ieee"]
