"""fold_batch_norm: forward, gradients, registration, edges and bad input."""

from __future__ import annotations

import re

import pytest
import torch

from mnv3_fast import ops
from mnv3_fast.testing.cases import Case, fold
from tests.ops import harness

SMALL = Case("fold_batch_norm", "small", fold(24, 1, 5, 5, bias=True))


@harness.cases("fold_batch_norm")
def test_forward(case: Case, instruction_set: str) -> None:
    harness.check_forward(case, instruction_set)


@pytest.mark.slow
@harness.cases("fold_batch_norm", "full")
def test_forward_full(case: Case, instruction_set: str) -> None:
    harness.check_forward(case, instruction_set)


def test_gradients() -> None:
    harness.check_gradients(SMALL)


def test_transforms() -> None:
    harness.check_transforms(SMALL)


def test_reference_backend() -> None:
    harness.check_reference_backend(SMALL)


def test_refuses_grad() -> None:
    harness.check_refuses_grad(SMALL)


def test_opcheck() -> None:
    harness.check_opcheck(SMALL)


def test_compile() -> None:
    harness.check_compiled(SMALL)


def test_compile_gradients() -> None:
    harness.check_compiled_gradients(SMALL)


def test_trace_and_copy() -> None:
    harness.check_traced_and_copied(SMALL)


def test_threads() -> None:
    harness.check_threads(SMALL)


W, NORM = torch.randn(8, 3, 3, 3), (torch.rand(8), torch.randn(8), torch.randn(8), torch.rand(8) + 0.1, 1e-3)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((3, None, NORM), TypeError, "fold_batch_norm: weight must be a Tensor, got int"),
        ((W.half(), None, NORM), TypeError, "fold_batch_norm: weight must be float32 or float64, got float16"),
        ((W[0, 0, 0], None, NORM), ValueError, "fold_batch_norm: weight must have 2 to 4 dimensions, got [3]"),
        ((W, torch.randn(7), NORM), ValueError, "fold_batch_norm: bias must be [O] with O = 8, got [7]"),
        (
            (W, None, None),
            TypeError,
            "fold_batch_norm: batch_norm must be (weight, bias, running_mean, running_var, eps), got NoneType",
        ),
        ((W, None, (*NORM[:4], -1.0)), ValueError, "fold_batch_norm: batch_norm eps must be at least 0, got -1.0"),
        (
            (W, None, (*NORM[:4], float("nan"))),
            ValueError,
            "fold_batch_norm: batch_norm eps must be at least 0, got nan",
        ),
        (
            (W, None, (None, None, None, NORM[3], 1e-3)),
            TypeError,
            "fold_batch_norm: batch_norm running_mean must be a Tensor, got NoneType",
        ),
    ],
)
def test_bad_input(args: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        ops.fold_batch_norm(*args)


def test_equals_the_two_modules() -> None:
    conv, norm = torch.nn.Conv2d(3, 8, 3, bias=True).double(), torch.nn.BatchNorm2d(8, eps=1e-3).double().eval()
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        vectors = [t.detach().float() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
        weight, bias = ops.fold_batch_norm(conv.weight.float(), conv.bias.float(), (*vectors, norm.eps))
        x = torch.randn(2, 3, 9, 9).double()
        assert torch.allclose(torch.nn.functional.conv2d(x, weight.double(), bias.double()), norm(conv(x)), atol=1e-5)


def test_keeps_a_channels_last_weight_right(instruction_set: str) -> None:
    weight, bias = ops.fold_batch_norm(W.contiguous(memory_format=torch.channels_last), None, NORM)
    expected, expected_bias = ops.fold_batch_norm(W, None, NORM)
    assert torch.equal(weight, expected)
    assert torch.equal(bias, expected_bias)


def test_returns_the_dtype_of_the_weight() -> None:
    doubles = tuple(t.double() for t in NORM[:4])
    exact, exact_bias = ops.fold_batch_norm(W.double(), None, (*doubles, NORM[4]))
    assert exact.dtype == exact_bias.dtype == torch.float64
    weight, bias = ops.fold_batch_norm(W, None, (*doubles, NORM[4]))
    assert torch.equal(weight, exact.float())
    assert torch.equal(bias, exact_bias.float())
    kernel, kernel_bias = ops.fold_batch_norm(W, None, NORM)
    assert torch.allclose(kernel, weight, rtol=1e-6)
    assert torch.allclose(kernel_bias, bias, rtol=1e-6)
