"""network: forward, gradients, registration, edges and bad input."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mnv3_fast import ops, testing
from mnv3_fast.engine import cache
from mnv3_fast.models.description import describe_net
from mnv3_fast.testing.cases import Case
from mnv3_fast.testing.compare import op_module
from mnv3_fast.testing.edges import EDGES
from tests.models.common import cached_parity_model
from tests.ops import harness

WHOLE = Case("network", "whole", dict(EDGES["network"])["whole"])
BODY = Case("network", "body", dict(EDGES["network"])["body"])


@harness.cases("network")
def test_forward(case: Case, instruction_set: str) -> None:
    harness.check_forward(case, instruction_set)


@pytest.mark.slow
@harness.cases("network", "full")
def test_forward_full(case: Case, instruction_set: str) -> None:
    harness.check_forward(case, instruction_set)


@pytest.mark.parametrize("case", [WHOLE, BODY], ids=str)
def test_gradients(case: Case) -> None:
    harness.check_gradients(case)


def test_refuses_grad() -> None:
    harness.check_refuses_grad(WHOLE)


@pytest.mark.parametrize("case", [WHOLE, BODY], ids=str)
def test_opcheck(case: Case) -> None:
    harness.check_opcheck(case)


def test_compile() -> None:
    harness.check_compiled(WHOLE)


def test_reference_backend() -> None:
    harness.check_reference_backend(WHOLE)


def test_compile_gradients() -> None:
    harness.check_compiled_gradients(WHOLE)


def test_trace_and_copy() -> None:
    harness.check_traced_and_copied(WHOLE)


def test_threads() -> None:
    harness.check_threads(WHOLE)


@pytest.mark.parametrize("case", [WHOLE, BODY], ids=str)
def test_export(case: Case) -> None:
    harness.check_exported(case)


@torch.no_grad()
@pytest.mark.parametrize("net", ["large", "small"])
def test_real_networks(net: str, instruction_set: str) -> None:
    model = cached_parity_model(net)
    x = testing.parity_images(2, 64, 97)
    raw = describe_net(model).flatten()
    with FlopCounterMode(display=False) as ours:
        output = torch.ops.mnv3_fast.network(x, *raw)
    with FlopCounterMode(display=False) as theirs:
        expected = model(x)
    testing.assert_net_equal(output, expected)
    assert ours.get_total_flops() == theirs.get_total_flops()


X = torch.randn(1, 16, 7, 7)
CONV, LINEAR = ("pointwise_conv", (torch.randn(8, 16, 1, 1),)), ("linear", (torch.randn(4, 8),))
STEM = ("stem_conv", (torch.randn(16, 3, 3, 3),))


@pytest.mark.parametrize(
    ("x", "stages", "error", "message"),
    [
        (X, [], TypeError, "network: stages must be a list of at least one stage, got list"),
        (X, {}, TypeError, "network: stages must be a list of at least one stage, got dict"),
        (
            X,
            [("conv",)],
            ValueError,
            "network: stage 0 must be one of stem_conv, inverted_residual, pointwise_conv, pool, linear and its "
            "arguments, got ('conv',)",
        ),
        (
            X,
            [("pool", 3)],
            TypeError,
            "network: stage 0 must be (name, arguments, options), got ('pool', 3)",
        ),
        (
            X,
            [CONV, STEM],
            ValueError,
            "network: stage 1 is stem_conv; a stem_conv stands first, and only it takes uint8 images",
        ),
        (
            X.byte(),
            [CONV],
            ValueError,
            "network: stage 0 is pointwise_conv; a stem_conv stands first, and only it takes uint8 images",
        ),
        (
            X,
            [CONV, LINEAR],
            ValueError,
            "network: stage 1 is linear and gets [1, 8, 7, 7]; pool follows a map, linear the pool",
        ),
        (
            X,
            [("pool",), LINEAR],
            ValueError,
            "network: stage 0 is pool and gets [1, 16, 7, 7]; pool follows a map, linear the pool",
        ),
        (
            X,
            [CONV, ("pool",), CONV],
            ValueError,
            "network: stage 2 is pointwise_conv and gets [1, 8]; pool follows a map, linear the pool",
        ),
        (
            X,
            [CONV, ("pool",), ("linear", (torch.randn(4, 9),))],
            ValueError,
            "network: linear: weight must be [O, I] with I = 8, got [4, 9]",
        ),
        (
            X,
            [CONV, CONV],
            ValueError,
            "pointwise_conv: weight must be [O, C, 1, 1] or [O, C] with C = 8, got [8, 16, 1, 1]",
        ),
        (
            X,
            [("pointwise_conv", (torch.randn(8, 16),), {"gate": torch.ones(1, 16)})],
            ValueError,
            "network: pointwise_conv with gate or residual stands in an inverted_residual only",
        ),
        (
            X[:, :3],
            [("stem_conv", (torch.randn(8, 3, 3, 3),), {"scale": torch.ones(3)})],
            ValueError,
            "network: stem_conv with scale and shift is for mnv3_fast.freeze",
        ),
        (X.double(), [CONV], TypeError, "network: input must be float32 or uint8, got float64"),
    ],
)
def test_bad_input(x: torch.Tensor, stages: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        ops.network(x, stages)


@harness.needs_kernels
@pytest.mark.parametrize("change", ["fewer tensors", "more ints", "unknown kind", "float64", "shape"])
def test_bad_raw_input(change: str) -> None:
    x, tensors, spec, constants = harness.prepared(WHOLE)
    error, message = ValueError, "do not fit each other; flatten a network with"
    if change == "fewer tensors":
        tensors = tensors[:-1]
    elif change == "more ints":
        spec = [*spec, 5]
    elif change == "unknown kind":
        spec = [9, *spec[1:]]
    elif change == "float64":
        tensors[0] = tensors[0].double()
        error, message = RuntimeError, "tensors must be dense float32 on the CPU"
    else:
        tensors[1] = tensors[1][:-1]
        message = r"network: stem weight must be \[16\], got \[15\]"
    with pytest.raises(error, match=message):
        torch.ops.mnv3_fast.network(x, tensors, spec, constants)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("first", "rest", "message"),
    [
        ([1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1], None, "network: stem weight must have four dimensions, got [4]"),
        ([3, 0, 0], None, "network: pointwise weight must have four dimensions, got [4]"),
        ([3, 0, 0, 4, 5, 0, 0], (4, 3, 1, 1), "network: linear weight must be [O, I], got [4]"),
    ],
)
@harness.needs_kernels
def test_flat_raw_weights(first: list[int], rest: tuple[int, ...] | None, message: str, device: str) -> None:
    tensors = [torch.rand(4, device=device)]
    if rest is not None:
        tensors.insert(0, torch.rand(rest, device=device))
    with pytest.raises(ValueError, match=re.escape(message)):
        torch.ops.mnv3_fast.network(torch.rand(1, 3, 8, 8, device=device), tensors, first, [0.0] * len(tensors))


@harness.needs_kernels
def test_cache_goes_with_its_tensors() -> None:
    harness.check_cache_goes(WHOLE)


def test_every_visible_write_repacks() -> None:
    harness.check_writes(WHOLE)


@harness.needs_kernels
def test_short_vectors_may_be_new_on_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in code generated by AOTInductor; a plan is packed once, and anew as soon as a value is another."""
    x, tensors, spec, constants = harness.prepared(WHOLE)
    short = [i for i, tensor in enumerate(tensors) if tensor.numel() <= cache.INLINED]
    assert short
    op = torch.ops.mnv3_fast.network
    module = op_module("network")
    packed, pack = [], module.pack_stages
    monkeypatch.setattr(module, "pack_stages", lambda stages: packed.append(1) or pack(stages))
    tensors[0].add_(0.02)  # equal tensors of another test have a plan already
    before = op(x, tensors, spec, constants)
    assert len(packed) == 1
    for _ in range(3):
        for i in short:
            tensors[i] = tensors[i].clone()
        assert torch.equal(op(x, tensors, spec, constants), before)
    assert len(packed) == 1
    size = cache.size()
    tensors[short[0]] = tensors[short[0]] + 1
    assert not torch.equal(op(x, tensors, spec, constants), before)
    assert len(packed) == 2
    assert cache.size() == size, "the plan of before is left"
