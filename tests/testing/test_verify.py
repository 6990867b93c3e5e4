"""The table of ``verify``: it passes here, and a broken kernel or a lost fault makes it fail."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.testing import verify

SET = mnv3_fast.instruction_set() or "reference"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ops, two cases each."""
    monkeypatch.setattr(verify, "OPS", ("depthwise_conv", "squeeze_excite"))
    monkeypatch.setattr(verify, "op_cases", lambda op: testing.op_cases(op)[:2])


@pytest.mark.usefixtures("few")
def test_ops_pass_and_planted_faults_are_found() -> None:
    rows = verify.verify_ops(SET)
    assert all(row.passed for row in rows), rows
    assert [row.name for row in rows[:2]] == ["depthwise_conv", "squeeze_excite"]
    assert [row.cases for row in rows[:2]] == [2, 2]
    assert {row.name.removeprefix("planted in ") for row in rows[2:]} == set(testing.OP_FAULTS)
    assert all(row.error > row.limit for row in rows[2:])


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "damage", [lambda x: x * 1.00001, lambda x: x * math.nan, lambda x: x[..., :-1], lambda x: x.double()]
)
def test_a_broken_kernel_fails(monkeypatch: pytest.MonkeyPatch, damage: Any) -> None:
    def outputs_of(case: testing.Case, plant: Any = None) -> tuple:
        ours, theirs, exact = testing.compare.outputs_of(case, plant)
        return [damage(output) for output in ours], theirs, exact

    monkeypatch.setattr(verify, "outputs_of", outputs_of)
    assert [row.passed for row in verify.verify_ops(SET)[:2]] == [False, False]


@pytest.mark.usefixtures("few")
def test_a_fault_that_nobody_finds_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = testing.OpFault(testing.op_cases("depthwise_conv")[0], lambda args, keywords: (args, keywords))
    monkeypatch.setattr(verify, "OP_FAULTS", {"depthwise_conv: nothing": blind})
    assert not verify.verify_ops(SET)[-1].passed
    monkeypatch.setattr(verify, "FAULTS", {"nothing": lambda model: model})
    assert not verify.verify_models(SET, ("small",))[-1].passed


def test_models_pass_and_planted_faults_are_found() -> None:
    rows = verify.verify_models(SET, ("small",))
    assert all(row.passed for row in rows), rows
    assert [row.name for row in rows[:2]] == ["small, accelerated", "small, frozen"]
    assert len(rows) == 2 + len(testing.FAULTS)


def test_nan_for_one_image_size_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x) * (math.nan if x.shape[2] == 32 else 1)

    monkeypatch.setattr(verify, "freeze", lambda model: Broken(model))
    accelerated, frozen = verify.verify_models(SET, ("small",))[:2]
    assert accelerated.passed
    assert not frozen.passed
    assert frozen.error == math.inf


def test_an_unknown_instruction_set_raises() -> None:
    if not mnv3_fast.instruction_sets():
        pytest.skip("no compiled kernels")
    with pytest.raises(ValueError, match="instruction set 'sse9' is not available here"):
        verify.verify_ops("sse9")
    assert torch.is_grad_enabled()
