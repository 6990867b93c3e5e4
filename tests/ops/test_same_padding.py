"""``padding="same"``: TensorFlow's, on the ops that convolve; each quick suite of an op has cases of it, too."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast import ops
from mnv3_fast.testing.cases import Case, block, depthwise, stem
from mnv3_fast.testing.compare import op_module, outputs_of, prepared
from mnv3_fast.testing.edges import EDGES
from mnv3_fast.testing.op_faults import symmetric_padding
from mnv3_fast.testing.tolerance import assert_close_enough
from tests.ops import harness

STEM = Case("stem_conv", "same", stem(2, 3, 8, 11, 16, padding="same", activation="relu"))
DEPTHWISE = Case("depthwise_conv", "same", depthwise(2, 20, 8, 11, 5, stride=2, padding="same"))
BLOCK = Case("inverted_residual", "same", block(2, 8, 8, 11, 24, 16, 5, 8, stride=2, padding="same"))
NETWORK = Case("network", "same", dict(EDGES["network"])["same_even"])
CONVOLUTIONS = pytest.mark.parametrize("case", [STEM, DEPTHWISE, BLOCK], ids=lambda case: case.op)
ALL = pytest.mark.parametrize("case", [STEM, DEPTHWISE, BLOCK, NETWORK], ids=lambda case: case.op)
SIZES = [(1, 1), (2, 3), (8, 8), (9, 14), (15, 7)]
WINDOWS = [(3, 2, 1), (5, 2, 1), (5, 1, 2), (3, 3, 1), (3, 2, 2), (7, (2, 3), 1), (1, 3, 1)]


def explicit(size: tuple[int, int], kernel: int, stride: tuple[int, int], dilation: int) -> tuple[int, int, int, int]:
    """Left, right, top and bottom as TensorFlow's page has them."""
    pads = []
    for i, s in ((size[1], stride[1]), (size[0], stride[0])):
        total = max((math.ceil(i / s) - 1) * s + (kernel - 1) * dilation + 1 - i, 0)
        pads += [total // 2, total - total // 2]
    return pads[0], pads[1], pads[2], pads[3]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@torch.no_grad()
def test_equals_what_tensorflow_pads(window: tuple, instruction_set: str) -> None:
    """To the last bit what the op gives with these numbers."""
    kernel, stride, dilation = window
    strides = (stride, stride) if isinstance(stride, int) else stride
    torch.manual_seed(0)
    depthwise_weight, stem_weight = torch.randn(20, 1, kernel, kernel), torch.randn(16, 3, kernel, kernel)
    project = (torch.randn(8, 20, 1, 1), None, None)
    options: dict[str, Any] = {"stride": stride, "dilation": dilation}
    for size in SIZES:
        x = torch.randn(2, 20, *size)
        pads = explicit(size, kernel, strides, dilation)
        for op, args in (
            (ops.depthwise_conv, (x, depthwise_weight)),
            (ops.stem_conv, (x[:, :3], stem_weight)),
            (ops.inverted_residual, (x, (depthwise_weight, None, None), project)),
        ):
            same = op(*args, padding="same", **options)
            assert torch.equal(same, op(*args, padding=pads, **options))
            assert same.shape[2:] == (math.ceil(size[0] / strides[0]), math.ceil(size[1] / strides[1]))


@pytest.mark.parametrize("case", [STEM, DEPTHWISE], ids=lambda case: case.op)
def test_symmetric_padding_is_found_where_it_differs(case: Case) -> None:
    """Heights are even; behind an odd one the numbers are the same."""
    with pytest.raises(AssertionError, match="error"):
        for results in zip(*outputs_of(case, symmetric_padding), strict=True):
            assert_close_enough(*results)
    odd = dict(EDGES[case.op])["same_odd"] if case is DEPTHWISE else stem(1, 3, 9, 13, 17, padding="same")
    for results in zip(*outputs_of(Case(case.op, "odd", odd), symmetric_padding), strict=True):
        assert_close_enough(*results)


@CONVOLUTIONS
def test_gradients(case: Case) -> None:
    harness.check_gradients(case)


@ALL
def test_opcheck(case: Case) -> None:
    harness.check_opcheck(case)


@CONVOLUTIONS
def test_reference_backend(case: Case) -> None:
    harness.check_reference_backend(case)


@ALL
def test_export_and_threads(case: Case) -> None:
    harness.check_exported(case)
    harness.check_threads(case)


@pytest.mark.parametrize(
    ("case", "grad"),
    [
        (DEPTHWISE, True),
        (BLOCK, False),
        *[pytest.param(case, True, marks=pytest.mark.slow) for case in (STEM, BLOCK)],
        *[pytest.param(case, False, marks=pytest.mark.slow) for case in (STEM, DEPTHWISE)],
    ],
    ids=lambda value: getattr(value, "op", f"grad={value}"),
)
def test_graphs_of_any_size(case: Case, grad: bool) -> None:
    """Compiled once for symbolic sizes, even and odd, forward and backward."""
    torch._dynamo.reset()
    module, x = harness.as_module(case)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((8, 11), (9, 12), (14, 7)):
        results: list[list[Tensor]] = []
        for function in (compiled, module):
            y = torch.linspace(-2, 2, x.shape[1] * size[0] * size[1]).view(1, x.shape[1], *size).requires_grad_(grad)
            output = function(y)
            if grad:
                output.square().sum().backward()
            results.append([output.detach(), y.grad] if grad else [output])
        for a, b in zip(*results, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def raw(case: Case, pads: tuple[int, int, int, int]) -> tuple:
    """The raw arguments of a case with other paddings."""
    args = list(prepared(case))
    if case is BLOCK:
        args[2] = [*args[2][:7], *pads, *args[2][11:]]
    else:
        first = {"stem_conv": 12, "depthwise_conv": 10}[case.op]
        assert args[first : first + 4] == [-1] * 4
        args[first : first + 4] = pads
    return tuple(args)


@harness.needs_kernels
@CONVOLUTIONS
@pytest.mark.parametrize("pads", [(-1, 1, 1, 1), (1, -1, -1, -1), (-1, -1, -1, 0), (-2, -2, -2, -2)])
def test_raw_numbers_that_are_not_all_minus_one(case: Case, pads: tuple[int, int, int, int]) -> None:
    with pytest.raises(RuntimeError, match=r"padding must not be negative|a padding is -\d"):
        op_module(case.op).OP(*raw(case, pads))


@pytest.mark.parametrize("padding", ["SAME", "valid", -1, (-1, -1, -1, -1), ("same", "same")])
def test_other_words(padding: Any) -> None:
    x, weight = torch.randn(1, 3, 7, 7), torch.randn(16, 3, 3, 3)
    message = "padding must be (an int, .* or 'same', got|at least 0, got)"
    for op, w in ((ops.stem_conv, weight), (ops.depthwise_conv, weight[:3, :1])):
        with pytest.raises((TypeError, ValueError), match=message):
            op(x, w, padding=padding)


@harness.needs_kernels
@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_where_the_map_keeps_its_size(stride: int) -> None:
    x = torch.randn(2, 16, 6, 7)
    layers = (torch.randn(16, 1, 5, 5), None, None), (torch.randn(16, 16, 1, 1), None, None)
    options = {"dilation": 2, "padding": "same"}
    if stride == 1:
        plain = ops.inverted_residual(x, *layers, **options)
        torch.testing.assert_close(ops.inverted_residual(x, *layers, residual=True, **options), plain + x)
        return
    with pytest.raises(ValueError, match="inverted_residual: residual needs an output of the input's shape"):
        ops.inverted_residual(x, *layers, residual=True, stride=2, **options)
    case = Case("inverted_residual", "raw", block(2, 16, 6, 7, 40, 16, 5, stride=2, padding="same"))
    input, tensors, spec, constants = prepared(case)
    spec[18] = 1
    with pytest.raises(RuntimeError, match="a residual block changes the shape of its map"):
        torch.ops.mnv3_fast.inverted_residual(input, tensors, spec, constants)


def test_work() -> None:
    """Multiply-adds are counted on the map that comes out."""
    from torch.utils.flop_counter import FlopCounterMode

    for case, out, macs in ((STEM, (4, 6), 27 * 16), (DEPTHWISE, (4, 6), 25 * 20)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            op_module(case.op).OP(*prepared(case))
        assert counter.get_total_flops() == 2 * 2 * out[0] * out[1] * macs
