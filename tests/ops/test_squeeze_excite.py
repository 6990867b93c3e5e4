"""squeeze_excite: forward, gradients, registration, edges and bad input."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision

from mnv3_fast import ops
from mnv3_fast.testing.cases import Case, squeeze_excite
from mnv3_fast.testing.compare import op_module, reference_of
from mnv3_fast.testing.layers import double
from tests.ops import harness

SMALL = Case("squeeze_excite", "small", squeeze_excite(2, 24, 5, 6, 8))


@harness.cases("squeeze_excite")
def test_forward(case: Case, instruction_set: str) -> None:
    harness.check_forward(case, instruction_set)


@pytest.mark.slow
@harness.cases("squeeze_excite", "full")
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
    harness.check_exported(SMALL)


X, F1, B1, F2, B2 = (
    torch.randn(2, 24, 5, 5),
    torch.randn(8, 24, 1, 1),
    torch.randn(8),
    torch.randn(24, 8, 1, 1),
    torch.randn(24),
)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((X[0], F1, B1, F2, B2), ValueError, "squeeze_excite: input must be [N, C, H, W], got [24, 5, 5]"),
        ((X[:, :, :0], F1, B1, F2, B2), ValueError, "squeeze_excite: input must not be empty, got [2, 24, 0, 5]"),
        (
            (X, F2, B1, F2, B2),
            ValueError,
            "squeeze_excite: fc1_weight must be [S, C, 1, 1] or [S, C] with C = 24, got [24, 8, 1, 1]",
        ),
        ((X.int(), F1, B1, F2, B2), TypeError, "squeeze_excite: input must be float32, got int32"),
    ],
)
def test_bad_input(args: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        ops.squeeze_excite(*args)


def test_equals_torchvision() -> None:
    module = torchvision.ops.SqueezeExcitation(24, 8, scale_activation=torch.nn.Hardsigmoid)
    with torch.no_grad():
        ours = ops.squeeze_excite(X, module.fc1.weight, module.fc1.bias, module.fc2.weight, module.fc2.bias)
        assert torch.allclose(ours, module(X), rtol=1e-5, atol=1e-6)


def test_nan_stays_in_its_image(instruction_set: str) -> None:
    x = X.clone()
    x[0, 3, 2, 2] = float("nan")
    ours = ops.squeeze_excite(x, F1, B1, F2, B2)
    assert torch.isnan(ours[0]).all()  # every gate of the image depends on its mean
    assert torch.isfinite(ours[1]).all()


def test_large_maps(instruction_set: str) -> None:
    """Means of many values of one sign: a single chain of additions would fail the rule."""
    x = torch.rand(1, 17, 400, 400) + 0.5
    layers = torch.randn(8, 17) * 0.1, torch.zeros(8), torch.randn(17, 8) * 0.3, torch.zeros(17)
    args = op_module("squeeze_excite").prepare(x, *layers)
    reference = reference_of("squeeze_excite")
    harness.assert_close_enough(ops.squeeze_excite(x, *layers), reference(*args), reference(*double(args)))
