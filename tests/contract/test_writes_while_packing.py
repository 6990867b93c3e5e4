"""Row "stale packs": another thread writes to a weight while it is packed, and takes the write back afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mnv3_fast.engine import cache
from mnv3_fast.ops.inverted_residual.op import PACKED as BLOCK
from mnv3_fast.ops.network.op import PACKED as NETWORK
from mnv3_fast.testing import cases
from tests.contract.common import X, accelerated, assert_same_as_stock
from tests.models.common import count_ops
from tests.ops import harness

pytestmark = harness.needs_kernels


def write_before(monkeypatch: pytest.MonkeyPatch, name: str, weight: torch.Tensor) -> Callable[[], bool]:
    """The next call of a packing function finds other values; the result says whether there was one."""
    done: list[bool] = []
    for op in (BLOCK, NETWORK):
        packing = getattr(op, name)

        def wrapped(*args: Any, real: Any = packing) -> Any:
            if not done:
                done.append(True)
                weight.data.mul_(1.5)
            return real(*args)

        monkeypatch.setattr(op, name, wrapped)
    return lambda: bool(done)


MOMENTS = {"while values are packed": "_pack", "before the values are compared": "packed"}


@torch.no_grad()
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("passes_before", [0, 1])
def test_a_write_that_is_taken_back(moment: str, passes_before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``.data`` counts no version, so afterwards the tensor looks as it did before."""
    model = accelerated()
    for _ in range(passes_before):
        model(X)  # the second pass makes one plan of the network
    weight = model.features[4].block[0][0].weight
    before = weight.clone()
    written = write_before(monkeypatch, MOMENTS[moment], weight)
    model(X)
    assert written()
    weight.data.copy_(before)
    for _ in range(5):
        assert_same_as_stock(model)
    assert count_ops(lambda: model(X))["mnv3_fast::run_plan"] == 1


@torch.no_grad()
def test_the_raw_op_keeps_no_such_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    args = harness.prepared(cases.Case("inverted_residual", "small", cases.block(1, 16, 9, 12, 40, 24, 3, 8)))
    tensors = args[1]
    expected = torch.ops.mnv3_fast.inverted_residual(*args).clone()
    cache.drop(tensors)
    before, size = tensors[0].clone(), cache.size()
    write_before(monkeypatch, "_pack", tensors[0])
    assert not torch.equal(torch.ops.mnv3_fast.inverted_residual(*args), expected)
    assert cache.size() == size
    tensors[0].data.copy_(before)
    assert torch.equal(torch.ops.mnv3_fast.inverted_residual(*args), expected)
    assert cache.size() == size + 1
