"""Raw ops with arguments of other shapes: an error that names the op and the argument, on every device."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import mnv3_fast  # noqa: F401
from tests.ops import harness

NO_NORM = (None, None, None, None, 0.0)
WINDOW = (1, 1, 1, 1, 1, 1, 1, 1)


def raw(op: str, first: torch.Tensor, weight: torch.Tensor) -> Any:
    """One raw op on its first two tensors."""
    vector = torch.rand(16, device=first.device)
    rest: dict[str, tuple] = {
        "pointwise_conv": (None, *NO_NORM, None, None, 0),
        "depthwise_conv": (None, *NO_NORM, *WINDOW, 0),
        "depthwise_conv_mean": (None, *NO_NORM, *WINDOW, 0),
        "stem_conv": (None, *NO_NORM, None, None, *WINDOW, 0),
        "squeeze_excite": (vector, weight, vector, 0, 0, 1 / 6),
        "squeeze_excite_gate": (vector, weight, vector, 0, 0, 1 / 6),
    }
    return getattr(torch.ops.mnv3_fast, op)(first, weight, *rest[op])


OPS = ("pointwise_conv", "depthwise_conv", "depthwise_conv_mean", "stem_conv", "squeeze_excite", "squeeze_excite_gate")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("argument", "dimensions"), [("input", 0), ("input", 3), ("weight", 0), ("weight", 1)])
def test_shapes_without_kernels_are_checked(op: str, argument: str, dimensions: int) -> None:
    """Meta tensors, as fake ones while a graph is captured, never come to the kernels."""
    first = torch.rand((2, 16) if op == "squeeze_excite_gate" else (2, 16, 8, 8), device="meta")
    weight = torch.rand(16, 16, 1, 1, device="meta")
    name = "fc1_weight" if "squeeze" in op else "weight"
    if argument == "input":
        first, name = torch.rand([3] * dimensions, device="meta"), "mean" if op == "squeeze_excite_gate" else "input"
    else:
        weight = torch.rand([3] * dimensions, device="meta")
    words = f"{op}: {name} must have "
    with pytest.raises(ValueError, match=rf"{words}\d( or \d)? dimensions, got {re.escape(str([3] * dimensions))}"):
        raw(op, first, weight)


def test_a_weight_to_fold_has_rows_and_columns() -> None:
    for shape in ((), (16,), (16, 1, 1, 1, 1)):
        vector = torch.rand(16, device="meta")
        with pytest.raises(ValueError, match="fold_batch_norm: weight must have 2 or 3 or 4 dimensions"):
            torch.ops.mnv3_fast.fold_batch_norm(torch.rand(shape, device="meta"), *[None] * 3, vector, vector, 0.1)


@pytest.mark.parametrize("op", ["inverted_residual", "network"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_weights_at_all(op: str, device: str) -> None:
    with pytest.raises(ValueError, match=f"{op}: (tensors must hold|0 tensors, 0 ints and 0 constants do not fit)"):
        getattr(torch.ops.mnv3_fast, op)(torch.rand(1, 3, 8, 8, device=device), [], [], [])


def test_a_geometry_that_is_no_engines() -> None:
    x, plan = torch.rand(1, 3, 8, 8, device="meta"), torch.zeros(100, dtype=torch.uint8, device="meta")
    for geometry in ([], [1], [1, 2, 3]):
        with pytest.raises(ValueError, match=rf"run_plan: geometry must be an engine's, .* got {len(geometry)}$"):
            torch.ops.mnv3_fast.run_plan(x, plan, geometry)
    with pytest.raises(ValueError, match=r"run_plan: plan must have 1 dimensions, got \[10, 10\]"):
        torch.ops.mnv3_fast.run_plan(x, plan.view(10, 10), [0, 1])


@harness.needs_kernels
@pytest.mark.parametrize("op", ["tensor_state", "watch"])
def test_states_are_of_dense_tensors_here(op: str) -> None:
    for tensors in ([], [torch.rand(3, device="meta")], [torch.eye(3).to_sparse()]):
        with pytest.raises(RuntimeError, match=r"tensor_state, watch: .*dense tensors on the CPU, at least one"):
            getattr(torch.ops.mnv3_fast, op)(tensors)
