"""What is packed for a GPU goes with its tensors, with every write that can be seen, and when it is told to."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import mnv3_fast
from mnv3_fast.models.description import describe_block
from mnv3_fast.ops.inverted_residual.op import PACKED
from mnv3_fast.testing.parity import parity_model

pytest.importorskip("triton")

from mnv3_fast.gpu import first_use, kept, launch


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: True)
    monkeypatch.setattr(kept, "_kept", {})
    with torch.no_grad():
        yield


def packed(block: torch.nn.Module) -> list[Tensor]:
    """A pass of a block; the packed weights that its launches read."""
    found: list[Tensor] = []

    def observe(each: launch.Launch) -> bool:
        found.append(each.arguments["weight"])
        return True

    tensors, spec, constants = describe_block(block).flatten()
    with launch.observe(observe):
        PACKED._on_gpu(torch.zeros(1, 16, 8, 8), tensors, spec, constants)
    return found


@pytest.fixture
def model() -> Any:
    return mnv3_fast.accelerate(parity_model("small").features[:4].eval())


def test_a_write_that_can_be_seen(model: Any) -> None:
    before = packed(model[2])
    assert packed(model[2])[0] is before[0]
    model[2].block[0][0].weight.mul_(2)
    assert torch.equal(packed(model[2])[0], before[0] * 2)
    assert kept.size() == 1


def test_refresh_after_one_that_cannot(model: Any) -> None:
    before = packed(model[2])
    model[2].block[0][0].weight.data.mul_(2)
    assert packed(model[2])[0] is before[0]
    mnv3_fast.refresh(model)
    assert kept.size() == 0
    assert torch.equal(packed(model[2])[0], before[0] * 2)


@pytest.mark.parametrize("forget", [lambda m: m.train(), lambda m: m.double(), mnv3_fast.restore])
def test_what_else_forgets(model: Any, forget: Any) -> None:
    packed(model[2])
    assert kept.size() == 1
    forget(model)
    assert kept.size() == 0


def test_aliases_are_forgotten_by_their_memory() -> None:
    weight = torch.ones(3)
    alias = weight.detach()
    kept.find([alias], ("test",), object)
    assert kept.forget([torch.ones(3)]) == 0
    assert kept.forget([weight]) == 1


def test_it_goes_with_any_of_its_tensors() -> None:
    first, second = torch.ones(1), torch.ones(1)
    kept.find([first, second], ("test",), object)
    del second
    gc.collect()
    assert kept.size() == 0


def test_what_was_written_while_it_was_packed_is_not_kept() -> None:
    weight = torch.ones(1)
    kept.find([weight], ("test",), lambda: weight.add_(1))
    assert kept.size() == 0


def test_an_error_keeps_nothing() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    weight = torch.ones(1)
    with pytest.raises(KeyboardInterrupt):
        kept.find([weight], ("test",), interrupted)
    assert kept.size() == 0
    assert kept.find([weight], ("test",), lambda: 7) == 7
