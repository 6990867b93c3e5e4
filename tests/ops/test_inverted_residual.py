"""inverted_residual: forward, gradients, registration, edges and bad input."""

from __future__ import annotations

import re

import pytest
import torch

from mnv3_fast import ops
from mnv3_fast.testing.cases import Case, block
from tests.ops import harness

SMALL = Case("inverted_residual", "small", block(2, 16, 9, 12, 40, 16, 5, 8, residual=True, activation="hardswish"))


@harness.cases("inverted_residual")
def test_forward(case: Case, instruction_set: str) -> None:
    harness.check_forward(case, instruction_set)


@pytest.mark.slow
@harness.cases("inverted_residual", "full")
def test_forward_full(case: Case, instruction_set: str) -> None:
    harness.check_forward(case, instruction_set)


def test_gradients() -> None:
    harness.check_gradients(SMALL)


def test_refuses_grad() -> None:
    harness.check_refuses_grad(SMALL)


def test_opcheck() -> None:
    harness.check_opcheck(SMALL)


def test_compile() -> None:
    harness.check_compiled(SMALL)


def test_reference_backend() -> None:
    harness.check_reference_backend(SMALL)


def test_compile_gradients() -> None:
    harness.check_compiled_gradients(SMALL)


def test_trace_and_copy() -> None:
    harness.check_traced_and_copied(SMALL)


def test_threads() -> None:
    harness.check_threads(SMALL)


def test_export() -> None:
    harness.check_exported(SMALL)


X = torch.randn(1, 16, 7, 7)


def layer(*shape: int) -> tuple:
    return torch.randn(*shape), None, None


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (
            (X, layer(16, 1, 3, 3), layer(8, 16, 1, 1)),
            {"padding": 1, "residual": True},
            ValueError,
            "inverted_residual: residual needs an output of the input's shape [1, 16, 7, 7], got [1, 8, 7, 7]",
        ),
        (
            (X, layer(16, 1, 3, 3), layer(16, 16, 1, 1)),
            {"padding": 1, "stride": 2, "residual": True},
            ValueError,
            "inverted_residual: residual needs an output of the input's shape [1, 16, 7, 7], got [1, 16, 4, 4]",
        ),
        (
            (X, layer(16, 1, 3, 3), layer(8, 15, 1, 1)),
            {},
            ValueError,
            "inverted_residual: project weight must be [O, 16, 1, 1], got [8, 15, 1, 1]",
        ),
        (
            (X, layer(12, 1, 3, 3), layer(8, 12, 1, 1)),
            {},
            ValueError,
            "inverted_residual: depthwise weight must be [16, 1, k, k], got [12, 1, 3, 3]",
        ),
        (
            (X, layer(24, 1, 3, 3), layer(8, 24, 1, 1)),
            {"expand": layer(24, 15, 1, 1)},
            ValueError,
            "inverted_residual: expand weight must be [O, 16, 1, 1], got [24, 15, 1, 1]",
        ),
        (
            (X, torch.randn(16, 1, 3, 3), layer(8, 16, 1, 1)),
            {},
            TypeError,
            "inverted_residual: depthwise must be (weight, bias or None, batch_norm or None), got Tensor",
        ),
        (
            (X.double(), layer(16, 1, 3, 3), layer(8, 16, 1, 1)),
            {},
            TypeError,
            "inverted_residual: input must be float32, got float64",
        ),
        (
            (X, layer(16, 1, 3, 3), layer(8, 16, 1, 1)),
            {"squeeze_excite": (X,)},
            TypeError,
            "inverted_residual: squeeze_excite must be (fc1 weight, fc1 bias, fc2 weight, fc2 bias)",
        ),
    ],
)
def test_bad_input(args: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        ops.inverted_residual(*args, **options)


@harness.needs_kernels
def test_cache_goes_with_its_tensors() -> None:
    harness.check_cache_goes(SMALL)


def test_every_visible_write_repacks() -> None:
    harness.check_writes(SMALL)


@harness.needs_kernels
@pytest.mark.parametrize("change", ["transposed", "flat", "bias"])
def test_squeeze_excite_of_another_shape(change: str) -> None:
    x, tensors, spec, constants = harness.prepared(SMALL)
    i = -1 if change == "bias" else -2
    shape = {"transposed": (8, 40, 1, 1), "flat": (1, 320), "bias": (40, 1)}[change]
    tensors[i] = tensors[i].reshape(shape)
    with pytest.raises(ValueError, match="squeeze_excite does not fit the block, got"):
        torch.ops.mnv3_fast.inverted_residual(x, tensors, spec, constants)


@harness.needs_kernels
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((), "depthwise weight must have four dimensions, got []"),
        ((3, 9), "depthwise weight must have four dimensions, got [3, 9]"),
        ((3, 2, 3, 3), "depthwise weight does not fit the block, got [3, 2, 3, 3]"),
        ((4, 1, 3, 3), "project weight does not fit the block, got [4, 3, 1, 1]"),
    ],
)
def test_raw_weights_of_other_shapes(shape: tuple[int, ...], message: str, device: str) -> None:
    tensors = [torch.rand(shape, device=device), torch.rand(4, 3, 1, 1, device=device)]
    spec = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match=re.escape(f"inverted_residual: {message}")):
        torch.ops.mnv3_fast.inverted_residual(torch.rand(1, 3, 8, 8, device=device), tensors, spec, [0.0, 0.0, 0.0, 1])


@harness.needs_kernels
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (3, 3, 3, 3), (500, 500, 500, 500), (2, 3, 2, 2)])
def test_residual_of_another_size(pads: tuple[int, ...]) -> None:
    x, tensors, spec, constants = harness.prepared(SMALL)
    spec[7:11] = pads
    with pytest.raises(RuntimeError, match="a residual block changes the shape of its map"):
        torch.ops.mnv3_fast.inverted_residual(x, tensors, spec, constants)


def test_inference_tensors() -> None:
    with torch.inference_mode():
        x, tensors, spec, constants = harness.prepared(SMALL)
        op = torch.ops.mnv3_fast.inverted_residual
        before = op(x, tensors, spec, constants)
        tensors[0].mul_(2)
        assert not torch.equal(op(x, tensors, spec, constants), before)


@harness.needs_kernels
def test_position_in_batch(instruction_set: str) -> None:
    _, tensors, spec, constants = harness.prepared(SMALL)
    x = torch.randn(5, 16, 9, 12)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        output = torch.ops.mnv3_fast.inverted_residual(x, tensors, spec, constants)
        for i in range(5):
            assert torch.equal(
                torch.ops.mnv3_fast.inverted_residual(x[i : i + 1], tensors, spec, constants)[0], output[i]
            )
