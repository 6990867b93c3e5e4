"""squeeze_excite_gate: forward, gradients, registration, edges and bad input."""

from __future__ import annotations

import re

import pytest
import torch

from mnv3_fast import ops
from mnv3_fast.testing.cases import Case, gate
from tests.ops import harness

SMALL = Case("squeeze_excite_gate", "small", gate(3, 40, 16))


@harness.cases("squeeze_excite_gate")
def test_forward(case: Case, instruction_set: str) -> None:
    harness.check_forward(case, instruction_set)


@pytest.mark.slow
@harness.cases("squeeze_excite_gate", "full")
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
    harness.check_exported(SMALL, (0,))


M, F1, B1, F2, B2 = (
    torch.randn(2, 24),
    torch.randn(8, 24, 1, 1),
    torch.randn(8),
    torch.randn(24, 8, 1, 1),
    torch.randn(24),
)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((M[0], F1, B1, F2, B2), {}, ValueError, "squeeze_excite_gate: mean must be [N, C], got [24]"),
        ((M.double(), F1, B1, F2, B2), {}, TypeError, "squeeze_excite_gate: mean must be float32, got float64"),
        (
            (M, F1[:, :23], B1, F2, B2),
            {},
            ValueError,
            "squeeze_excite_gate: fc1_weight must be [S, C, 1, 1] or [S, C] with C = 24, got [8, 23, 1, 1]",
        ),
        (
            (M, F1, B1, F2[:, :7], B2),
            {},
            ValueError,
            "squeeze_excite_gate: fc2_weight must be [C, S, 1, 1] or [C, S] with C = 24, S = 8, got [24, 7, 1, 1]",
        ),
        ((M, F1, B2, F2, B2), {}, ValueError, "squeeze_excite_gate: fc1_bias must be [8], got [24]"),
        ((M, F1, B1, F2, B1), {}, ValueError, "squeeze_excite_gate: fc2_bias must be [24], got [8]"),
        (
            (M, F1, B1, F2, B2),
            {"gate": "tanh"},
            ValueError,
            "squeeze_excite_gate: gate must be one of hardsigmoid, sigmoid, got 'tanh'",
        ),
        ((M, F1, B1, F2, B2), {"slope": "1/6"}, TypeError, "squeeze_excite_gate: slope must be a number, got str"),
    ],
)
def test_bad_input(args: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        ops.squeeze_excite_gate(*args, **options)


def test_gate_is_in_its_range(instruction_set: str) -> None:
    for name in ("hardsigmoid", "sigmoid"):
        values = ops.squeeze_excite_gate(M * 100, F1, B1, F2, B2, gate=name)
        assert values.min() >= 0
        assert values.max() <= 1
        assert values.min() < 0.1
        assert values.max() > 0.9


def test_biases_are_optional() -> None:
    zeros = ops.squeeze_excite_gate(M, F1, torch.zeros(8), F2, torch.zeros(24))
    assert torch.equal(ops.squeeze_excite_gate(M, F1, None, F2, None), zeros)


def test_corners(instruction_set: str) -> None:
    x = torch.tensor([-3.0, 3.0, float("inf"), -float("inf"), float("nan"), -100.0, 100.0]).view(-1, 1)
    one = torch.ones(1, 1)
    for name, function in (("hardsigmoid", torch.nn.functional.hardsigmoid), ("sigmoid", torch.sigmoid)):
        ours = ops.squeeze_excite_gate(x, one, None, one, None, activation="none", gate=name)
        assert torch.allclose(ours, function(x), rtol=1e-6, atol=0, equal_nan=True)
        if gate == "hardsigmoid":
            assert ours[:4, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
