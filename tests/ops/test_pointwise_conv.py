"""pointwise_conv: forward, gradients, registration, edges and bad input."""

from __future__ import annotations

import re

import pytest
import torch

from mnv3_fast import ops
from mnv3_fast.testing.cases import Case, pointwise
from tests.ops import harness

SMALL = Case("pointwise_conv", "small", pointwise(2, 20, 9, 12, 40, gated=True, residual=True, activation="relu"))


@harness.cases("pointwise_conv")
def test_forward(case: Case, instruction_set: str) -> None:
    harness.check_forward(case, instruction_set)


@pytest.mark.slow
@harness.cases("pointwise_conv", "full")
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


def test_export() -> None:
    harness.check_exported(Case("pointwise_conv", "export", pointwise(2, 20, 9, 12, 40, activation="relu")))


X, W = torch.randn(2, 8, 5, 6), torch.randn(12, 8, 1, 1)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((None, W), {}, TypeError, "pointwise_conv: input must be a Tensor, got NoneType"),
        ((X.bfloat16(), W), {}, TypeError, "pointwise_conv: input must be float32, got bfloat16"),
        (
            (X, W[:, :7]),
            {},
            ValueError,
            "pointwise_conv: weight must be [O, C, 1, 1] or [O, C] with C = 8, got [12, 7, 1, 1]",
        ),
        (
            (X, torch.randn(12, 8, 3, 3)),
            {},
            ValueError,
            "pointwise_conv: weight must be [O, C, 1, 1] or [O, C] with C = 8, got [12, 8, 3, 3]",
        ),
        ((X, W), {"gate": torch.rand(2, 7)}, ValueError, "pointwise_conv: gate must be [N, C] = [2, 8], got [2, 7]"),
        ((X, W), {"gate": torch.rand(8)}, ValueError, "pointwise_conv: gate must be [N, C] = [2, 8], got [8]"),
        (
            (X, W),
            {"residual": X},
            ValueError,
            "pointwise_conv: residual must be [N, O, H, W] = [2, 12, 5, 6], got [2, 8, 5, 6]",
        ),
        (
            (X, W),
            {"residual": torch.randn(2, 12, 5, 6, device="meta")},
            ValueError,
            "pointwise_conv: residual must be on the input's device cpu, got meta",
        ),
        (
            (X, W),
            {"activation": None},
            ValueError,
            "pointwise_conv: activation must be one of none, relu, hardswish, relu6, got None",
        ),
        (
            (X[:, :, :0], W),
            {},
            ValueError,
            "pointwise_conv: input and weight must not be empty, got [2, 8, 0, 6] and [12, 8, 1, 1]",
        ),
    ],
)
def test_bad_input(args: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        ops.pointwise_conv(*args, **options)


def test_flat_weight_is_the_same() -> None:
    assert torch.equal(ops.pointwise_conv(X, W), ops.pointwise_conv(X, W.flatten(1)))


def test_position_in_batch(instruction_set: str) -> None:
    x, gate = torch.randn(5, 8, 9, 9), torch.rand(5, 8)
    output = ops.pointwise_conv(x, W, gate=gate)
    for i in range(5):
        assert torch.equal(ops.pointwise_conv(x[i : i + 1], W, gate=gate[i : i + 1])[0], output[i])


def test_nan_and_inf_pass_as_in_torch(instruction_set: str) -> None:
    x = torch.randn(2, 8, 3, 3)
    x[0, 0, 1, 1], x[0, 1, 2, 2] = float("nan"), float("inf")
    ours = ops.pointwise_conv(x, W, activation="relu")
    theirs = torch.relu(torch.nn.functional.conv2d(x, W))
    assert torch.equal(torch.isnan(ours), torch.isnan(theirs))
    assert torch.equal(torch.isinf(ours), torch.isinf(theirs))
    assert torch.isfinite(ours[1]).all()
