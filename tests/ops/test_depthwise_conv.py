"""depthwise_conv: forward, gradients, registration, edges and bad input."""

from __future__ import annotations

import re

import pytest
import torch
from torch.autograd import forward_ad

from mnv3_fast import ops
from mnv3_fast.ops.depthwise_conv.reference import depthwise_conv_mean
from mnv3_fast.testing.cases import Case, depthwise
from mnv3_fast.testing.layers import double
from tests.ops import harness

SMALL = Case("depthwise_conv", "small", depthwise(2, 24, 17, 12, 5, stride=2, activation="hardswish"))


@harness.cases("depthwise_conv")
def test_forward(case: Case, instruction_set: str) -> None:
    harness.check_forward(case, instruction_set)


@pytest.mark.slow
@harness.cases("depthwise_conv", "full")
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


X, W = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((1.0, W), {}, TypeError, "depthwise_conv: input must be a Tensor, got float"),
        ((X.double(), W), {}, TypeError, "depthwise_conv: input must be float32, got float64"),
        ((X.half(), W), {}, TypeError, "depthwise_conv: input must be float32, got float16"),
        ((X[0], W), {}, ValueError, "depthwise_conv: input must be [N, C, H, W], got [8, 9, 9]"),
        (
            (X.to_sparse(), W),
            {},
            TypeError,
            "depthwise_conv: input must be a dense (strided) tensor, got layout torch.sparse_coo",
        ),
        ((X, W[:4]), {}, ValueError, "depthwise_conv: weight must be [C, 1, kh, kw] with C = 8, got [4, 1, 3, 3]"),
        ((X, W.double()), {}, TypeError, "depthwise_conv: weight must be float32, got float64"),
        ((X, W.to("meta")), {}, ValueError, "depthwise_conv: weight must be on the input's device cpu, got meta"),
        (
            (X, torch.randn(8, 1, 4, 3)),
            {},
            ValueError,
            "depthwise_conv: kernel size must be one of 1, 3, 5, 7 each way, got [4, 3]",
        ),
        ((X, W, torch.randn(7)), {}, ValueError, "depthwise_conv: bias must be [C] with C = 8, got [7]"),
        ((X, W), {"stride": 0}, ValueError, "depthwise_conv: stride must be at least 1, got 0"),
        ((X, W), {"stride": 2**21}, ValueError, "depthwise_conv: stride must be at most 1048576, got 2097152"),
        (
            (X, W),
            {"padding": (0, 2**70)},
            ValueError,
            f"depthwise_conv: padding must be at most 1048576, got (0, {2**70})",
        ),
        ((X.to("meta"), W), {}, ValueError, "depthwise_conv: weight must be on the input's device meta, got cpu"),
        (
            (X.to_mkldnn(), W),
            {},
            TypeError,
            "depthwise_conv: input must be a dense (strided) tensor, got layout torch._mkldnn",
        ),
        (
            (torch.nested.nested_tensor([X[0], X[1]]), W),
            {},
            TypeError,
            "depthwise_conv: input must be a dense (strided) tensor, got a nested one",
        ),
        (
            (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), W),
            {},
            TypeError,
            "depthwise_conv: input must be float32, got quint8",
        ),
        ((X, W), {"pad": 1}, TypeError, "depthwise_conv() got an unexpected keyword argument 'pad'"),
        ((X, W), {"stride": (1, 2, 3)}, TypeError, "depthwise_conv: stride must be an int or (h, w), got (1, 2, 3)"),
        ((X, W), {"stride": 1.5}, TypeError, "depthwise_conv: stride must be an int or (h, w), got 1.5"),
        ((X, W), {"dilation": (0, 1)}, ValueError, "depthwise_conv: dilation must be at least 1, got (0, 1)"),
        ((X, W), {"padding": -1}, ValueError, "depthwise_conv: padding must be at least 0, got -1"),
        (
            (X, W),
            {"padding": (1, 2, 3)},
            TypeError,
            "depthwise_conv: padding must be an int, (h, w), (left, right, top, bottom) or 'same', got (1, 2, 3)",
        ),
        (
            (X, W),
            {"activation": "gelu"},
            ValueError,
            "depthwise_conv: activation must be one of none, relu, hardswish, got 'gelu'",
        ),
        (
            (X, W),
            {"batch_norm": (W,)},
            TypeError,
            "depthwise_conv: batch_norm must be (weight, bias, running_mean, running_var, eps), got tuple of 1",
        ),
        (
            (X, W),
            {"batch_norm": (None, None, torch.ones(8), torch.ones(7), 1e-3)},
            ValueError,
            "depthwise_conv: batch_norm running_var must be [C] with C = 8, got [7]",
        ),
        (
            (X, W),
            {"batch_norm": (None, None, torch.ones(8), torch.ones(8), "x")},
            TypeError,
            "depthwise_conv: batch_norm eps must be a number, got str",
        ),
        (
            (X[:, :, :2], W),
            {},
            ValueError,
            "depthwise_conv: input height 2 with padding 0 is smaller than the kernel's 3",
        ),
        ((X[:, :, :, :0], W), {"padding": 1}, ValueError, "depthwise_conv: input width must be at least 1, got 0"),
        (
            (X[:, :0], W[:0]),
            {"padding": 1},
            ValueError,
            "depthwise_conv: input must have at least one channel, got [2, 0, 9, 9]",
        ),
    ],
)
def test_bad_input(args: tuple, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        ops.depthwise_conv(*args, **options)


def test_raw_op_refuses_two_devices() -> None:
    message = "depthwise_conv: all tensors must be on one device, got cpu, meta"
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mnv3_fast.depthwise_conv(X, W.to("meta"), *[None] * 5, 0.0, 1, 1, 1, 1, 1, 1, 1, 1, 0)


def test_raw_op_refuses_a_tangent() -> None:
    with forward_ad.dual_level():
        x = forward_ad.make_dual(X, torch.ones_like(X))
        with pytest.raises(
            RuntimeError, match=r"depthwise_conv: torch\.ops\.mnv3_fast\.depthwise_conv is not differentiable"
        ):
            torch.ops.mnv3_fast.depthwise_conv(x, W, *[None] * 5, 0.0, 1, 1, 1, 1, 1, 1, 1, 1, 0)


@harness.needs_kernels
def test_raw_op_is_memory_safe() -> None:
    none = [None] * 5
    for args, message in [
        (
            (X, W[:4], *none, 0.0, 1, 1, 1, 1, 1, 1, 1, 1, 0),
            "depthwise_conv: weight must be [8, 1, *, *], got [4, 1, 3, 3]",
        ),
        ((X.double(), W, *none, 0.0, 1, 1, 1, 1, 1, 1, 1, 1, 0), "depthwise_conv: input must be float32"),
        (
            (X, W, *none, 0.0, 0, 1, 1, 1, 1, 1, 1, 1, 0),
            "depthwise_conv: kernel size, stride and dilation must be at least 1",
        ),
        ((X, W, *none, 0.0, 1, 1, -9, 1, 1, 1, 1, 1, 0), "depthwise_conv: padding must not be negative"),
        (
            (X, W, *none, 0.0, 1, 1, 1, 1, 1, 1, 1, 1, 7),
            "depthwise_conv: activation must be 0 (none), 1 (relu) or 2 (hardswish), got 7",
        ),
    ]:
        with pytest.raises(RuntimeError, match=re.escape(message)):
            torch.ops.mnv3_fast.depthwise_conv(*args)


def test_nan_and_inf_pass_as_in_torch(instruction_set: str) -> None:
    x = torch.randn(2, 24, 7, 7)
    x[0, 3, 2, 2], x[0, 5, 1, 1], x[0, 7, 6, 6] = float("nan"), float("inf"), -float("inf")
    for activation, function in (
        ("none", lambda y: y),
        ("relu", torch.relu),
        ("hardswish", torch.nn.functional.hardswish),
    ):
        weight = torch.rand(24, 1, 3, 3) + 0.5
        ours = ops.depthwise_conv(x, weight, padding=1, activation=activation)
        theirs = function(torch.nn.functional.conv2d(x, weight, padding=1, groups=24))
        assert torch.equal(torch.isnan(ours), torch.isnan(theirs))
        assert torch.equal(torch.isinf(ours), torch.isinf(theirs))
        assert torch.isfinite(ours[1]).all()  # NaN in one image stays in it


def test_position_in_batch(instruction_set: str) -> None:
    x, weight = torch.randn(5, 24, 9, 9), torch.randn(24, 1, 5, 5)
    output, mean = ops.depthwise_conv(x, weight, padding=2, return_mean=True)
    for i in range(5):
        one, one_mean = ops.depthwise_conv(x[i : i + 1], weight, padding=2, return_mean=True)
        assert torch.equal(one[0], output[i])
        assert torch.equal(one_mean[0], mean[i])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_means(threads: int, instruction_set: str) -> None:
    torch.set_num_threads(threads)
    for case in (SMALL, Case("depthwise_conv", "tall", depthwise(1, 16, 113, 9, 3))):
        args = harness.prepared(case)
        output, mean = torch.ops.mnv3_fast.depthwise_conv_mean(*args)
        assert torch.equal(output, torch.ops.mnv3_fast.depthwise_conv(*args))
        _, theirs = depthwise_conv_mean(*args)
        _, exact = depthwise_conv_mean(*double(args))
        harness.assert_close_enough(mean, theirs, exact, name="mean")


def test_mean_registration() -> None:
    op = torch.ops.mnv3_fast.depthwise_conv_mean.default
    assert set(torch.library.opcheck(op, harness.prepared(SMALL)).values()) == {"SUCCESS"}


def test_hardswish_at_its_corners(instruction_set: str) -> None:
    x = torch.tensor([-3.0, 3.0, -2.9999998, 2.9999998, -3.0000002, float("inf"), -float("inf"), float("nan")])
    ours = ops.depthwise_conv(x.view(1, 8, 1, 1), torch.ones(8, 1, 1, 1), activation="hardswish").flatten()
    exact = torch.nn.functional.hardswish(x.double())
    assert ours[:2].tolist() == [0.0, 3.0]
    assert torch.allclose(ours.double(), exact, rtol=0, atol=torch.finfo(torch.float32).eps, equal_nan=True)
