"""stem_conv: forward, gradients, registration, edges and bad input."""

from __future__ import annotations

import re

import pytest
import torch

from mnv3_fast import ops
from mnv3_fast.testing.cases import Case, stem
from tests.ops import harness

SMALL = Case("stem_conv", "small", stem(2, 3, 9, 12, 16, activation="hardswish"), "contiguous")


@harness.cases("stem_conv")
def test_forward(case: Case, instruction_set: str) -> None:
    harness.check_forward(case, instruction_set)


@pytest.mark.slow
@harness.cases("stem_conv", "full")
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


X, W = torch.randn(2, 3, 9, 9), torch.randn(16, 3, 3, 3)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (([], W), {}, TypeError, "stem_conv: input must be a Tensor, got list"),
        ((X.long(), W), {}, TypeError, "stem_conv: input must be float32 or uint8, got int64"),
        ((X[0], W), {}, ValueError, "stem_conv: input must be [N, C, H, W], got [3, 9, 9]"),
        ((X, W[:, :2]), {}, ValueError, "stem_conv: weight must be [O, C, kh, kw] with C = 3, got [16, 2, 3, 3]"),
        ((X, W, torch.randn(3)), {}, ValueError, "stem_conv: bias must be [O] with O = 16, got [3]"),
        ((X, W), {"scale": torch.ones(4)}, ValueError, "stem_conv: scale must be [C] with C = 3, got [4]"),
        ((X, W), {"shift": 1.0}, TypeError, "stem_conv: shift must be a Tensor, got float"),
        ((X, W), {"stride": -2}, ValueError, "stem_conv: stride must be at least 1, got -2"),
        ((X[:, :, :, :0], W), {}, ValueError, "stem_conv: input width must be at least 1, got 0"),
        ((X, W[:0]), {}, ValueError, "stem_conv: weight must not be empty, got [0, 3, 3, 3]"),
        (
            (torch.randn(1, 100, 9, 9), torch.randn(8, 100, 3, 3)),
            {},
            ValueError,
            "stem_conv: input channels times kernel height must be at most 256, got 100 x 3; a convolution of that many channels is no stem",
        ),
    ],
)
def test_bad_input(args: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        ops.stem_conv(*args, **options)


def test_reads_every_layout_alike(instruction_set: str) -> None:
    x = torch.randn(2, 3, 19, 23)
    expected = ops.stem_conv(x, W, activation="hardswish")
    for other in (
        x.contiguous(memory_format=torch.channels_last),
        torch.nn.functional.pad(x, (2, 1, 1, 3))[:, :, 1:20, 2:25],
    ):
        assert torch.equal(ops.stem_conv(other, W, activation="hardswish"), expected)


def test_bytes_are_normalized_before_the_padding(instruction_set: str) -> None:
    image = torch.randint(0, 256, (2, 3, 15, 16), dtype=torch.uint8)
    scale, shift = torch.rand(3) / 100, torch.randn(3)
    floats = image.float() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    ours, theirs = ops.stem_conv(image, W, scale=scale, shift=shift), ops.stem_conv(floats, W)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_nan_stays_in_its_image() -> None:
    x = X.clone()
    x[0, 1, 4, 4] = float("nan")
    ours = ops.stem_conv(x, W, activation="hardswish")
    theirs = torch.nn.functional.hardswish(torch.nn.functional.conv2d(x, W, stride=2, padding=1))
    assert torch.equal(torch.isnan(ours), torch.isnan(theirs))
    assert torch.isfinite(ours[1]).all()
