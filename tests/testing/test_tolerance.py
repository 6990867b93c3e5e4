"""The tolerance rule: what it says, that it can fail, and that nothing moves it."""

from __future__ import annotations

import ast
import inspect
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mnv3_fast import testing
from mnv3_fast.testing import tolerance

ENVIRONMENT = {"os", "environ", "getenv", "putenv"}


def names_in(source: str) -> set[str]:
    """Every name, attribute and imported module of a piece of code."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= set(node.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            found |= set((node.module or "").split("."))
    return found


def test_the_rule_is_fixed() -> None:
    assert (tolerance.OP_FACTOR, tolerance.OP_FLOOR_EPS, tolerance.GRADIENT_FACTOR) == (2.0, 4.0, 3.0)
    assert (tolerance.NET_LIMIT, tolerance.MEAN_RATIO_LIMIT) == (2e-5, 2.0)
    eps = torch.finfo(torch.float32).eps
    assert tolerance.op_limit(1e-7) == 2e-7 + 4 * eps
    assert tolerance.op_limit(1e-7, gradient=True) == 3e-7 + 4 * eps
    assert tolerance.op_limit(1e-3, torch.bfloat16) == 2e-3 + 4 * torch.finfo(torch.bfloat16).eps


def test_no_variable_and_no_argument_moves_it() -> None:
    for module in ("tolerance", "compare", "parity", "verify", "cases", "edges", "faults", "op_faults"):
        source = Path(tolerance.__file__).with_name(f"{module}.py").read_text()
        assert not names_in(source) & ENVIRONMENT, module
    for function in (testing.assert_close_enough, testing.assert_net_equal):
        assert not {"tol", "atol", "rtol", "limit", "factor"} & set(inspect.signature(function).parameters)
    assert names_in("from os import environ") & ENVIRONMENT
    assert names_in("import os.path") & ENVIRONMENT


@pytest.fixture
def exact() -> Tensor:
    return torch.randn(2, 3, 4, 5).double()


def test_close_enough_can_fail(exact: Tensor) -> None:
    theirs = exact.float()
    testing.assert_close_enough(theirs, theirs, exact)
    with pytest.raises(AssertionError, match="relative_error"):
        testing.assert_close_enough(theirs * 1.00001, theirs, exact)
    one_off = theirs.clone()
    one_off.view(-1)[exact.abs().argmin()] += 3e-6
    with pytest.raises(AssertionError, match="max_error"):
        testing.assert_close_enough(one_off, theirs, exact)
    with pytest.raises(AssertionError, match="shape"):
        testing.assert_close_enough(theirs[:1], theirs, exact)
    with pytest.raises(AssertionError, match=r"dtype torch\.float64"):
        testing.assert_close_enough(exact, theirs, exact)


def test_gradients_have_their_own_factor(exact: Tensor) -> None:
    theirs, ours = exact * (1 + 1e-5), exact * (1 + 2.5e-5)
    testing.assert_close_enough(ours.float(), theirs.float(), exact, gradient=True)
    with pytest.raises(AssertionError, match="relative_error"):
        testing.assert_close_enough(ours.float(), theirs.float(), exact)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stands_where_torch_has_it(exact: Tensor, value: float) -> None:
    theirs = exact.float()
    with_value = theirs.clone()
    with_value[0, 1, 2, 3] = value
    testing.assert_close_enough(with_value, with_value, with_value.double())
    testing.assert_close_enough(with_value, with_value, exact)  # float32 overflows where fp64 does not
    word = "NaN" if math.isnan(value) else "infinite"
    for ours, torchs in ((with_value, theirs), (theirs, with_value)):
        with pytest.raises(AssertionError, match=word):
            testing.assert_close_enough(ours, torchs, exact)
    with pytest.raises(AssertionError):
        testing.assert_close_enough(with_value, with_value.flip(0), exact)
    wrong_elsewhere = with_value.clone()
    wrong_elsewhere[1] *= 1.01
    with pytest.raises(AssertionError, match="relative_error"):
        testing.assert_close_enough(wrong_elsewhere, with_value, exact)


def test_infinities_of_either_sign_differ(exact: Tensor) -> None:
    up, down = exact.float(), exact.float()
    up[0], down[0] = math.inf, -math.inf
    with pytest.raises(AssertionError, match="infinite"):
        testing.assert_close_enough(up, down, exact)


def test_empty_outputs_are_equal() -> None:
    empty = torch.empty(0, 3, 4, 4)
    testing.assert_close_enough(empty, empty, empty.double())
    testing.assert_net_equal(empty, empty)


def test_net_equal_can_fail(exact: Tensor) -> None:
    theirs = exact.float()
    testing.assert_net_equal(theirs * (1 + 1e-5), theirs)
    for ours in (theirs * (1 + 3e-5), theirs * math.nan, theirs[:1], theirs.double()):
        with pytest.raises(AssertionError):
            testing.assert_net_equal(ours, theirs)


def test_worst_sees_nan() -> None:
    assert testing.worst([0.5, math.nan, 0.1]) == math.inf
    assert testing.worst([0.5, 2.0]) == 2.0
    assert testing.worst([]) == 0.0


def test_geometric_mean() -> None:
    assert testing.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


def judge(fault: testing.OpFault, plant: bool) -> None:
    """The rule for ops, over the outputs of a case with or without its fault."""
    for outputs in zip(*testing.compare.outputs_of(fault.case, fault.plant if plant else None), strict=True):
        testing.assert_close_enough(*outputs)


@pytest.mark.parametrize("fault", testing.OP_FAULTS)
def test_each_fault_planted_in_an_op_is_found(fault: str) -> None:
    planted = testing.OP_FAULTS[fault]
    judge(planted, plant=False)
    with pytest.raises(AssertionError, match="error"):
        judge(planted, plant=True)
