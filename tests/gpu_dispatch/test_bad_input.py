"""What the ops refuse on a GPU, word for word: the public ones on fake CUDA tensors, the raw ones on any."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mnv3_fast import ops
from mnv3_fast.gpu import dispatch, launch
from mnv3_fast.gpu.dispatch import RUN

X, W, V = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3), torch.ones(8)
NORM = (None, None, V, V, 1e-3)
P, S = torch.randn(8, 8, 1, 1), torch.randn(16, 8, 3, 3)
BYTES = torch.zeros(2, 8, 9, 9, dtype=torch.uint8)
F1, F2 = torch.randn(4, 8), torch.randn(8, 4)


def on_cuda(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, Tensor):
        with mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
    return tuple(on_cuda(item, mode) for item in value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("op", "args", "options", "message"),
    [
        (
            "depthwise_conv", (X.double(), W), {},
            "depthwise_conv: input must be float32, float16 or bfloat16, got float64",
        ),
        (
            "depthwise_conv", (BYTES, W), {},
            "depthwise_conv: input must be float32, float16 or bfloat16, got uint8",
        ),
        ("depthwise_conv", (X, W.half()), {}, "depthwise_conv: weight must be float32, got float16"),
        (
            "depthwise_conv", (X.half(), W.bfloat16()), {},
            "depthwise_conv: weight must be float16 or float32, got bfloat16",
        ),
        (
            "depthwise_conv", (X.bfloat16(), W, V.half()), {},
            "depthwise_conv: bias must be bfloat16 or float32, got float16",
        ),
        (
            "depthwise_conv", (X.half(), W), {"batch_norm": (*NORM[:3], V.double(), 1e-3)},
            "depthwise_conv: batch_norm running_var must be float16 or float32, got float64",
        ),
        (
            "pointwise_conv", (X.half(), P), {"residual": X},
            "pointwise_conv: residual must be float16, got float32",
        ),
        (
            "pointwise_conv", (X.half(), P), {"gate": torch.ones(2, 8).double()},
            "pointwise_conv: gate must be float16 or float32, got float64",
        ),
        (
            "stem_conv", (X.long(), S), {},
            "stem_conv: input must be float32, float16, bfloat16 or uint8, got int64",
        ),
        (
            "stem_conv", (BYTES, S.double()), {},
            "stem_conv: weight must be float32, float16 or bfloat16, got float64",
        ),
        (
            "stem_conv", (BYTES, S.half()), {"scale": V.bfloat16()},
            "stem_conv: scale must be float16 or float32, got bfloat16",
        ),
        ("stem_conv", (X.half(), S), {"shift": V.double()}, "stem_conv: shift must be float16 or float32, got float64"),
        (
            "squeeze_excite_gate", (X[:, :, 0, 0].double(), F1, None, F2, None), {},
            "squeeze_excite_gate: mean must be float32, float16 or bfloat16, got float64",
        ),
        (
            "squeeze_excite_gate", (X[:, :, 0, 0].half(), F1.bfloat16(), None, F2, None), {},
            "squeeze_excite_gate: fc1_weight must be float16 or float32, got bfloat16",
        ),
        (
            "squeeze_excite", (X.half(), F1, None, F2, V.double()), {},
            "squeeze_excite: fc2_bias must be float16 or float32, got float64",
        ),
    ],
)  # fmt: skip
def test_dtypes(op: str, args: tuple, options: dict[str, Any], message: str) -> None:
    mode = FakeTensorMode()
    args, options = on_cuda(args, mode), {name: on_cuda(value, mode) for name, value in options.items()}
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"), mode:
        getattr(ops, op)(*args, **options)


def test_two_devices() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    message = "depthwise_conv: weight must be on the input's device cuda:0, got cpu"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ops.depthwise_conv(on_cuda(X, mode), W)


NONE = (None,) * 4
WINDOW = (1, 1, 1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("op", "args", "error", "message"),
    [
        (
            "depthwise_conv", (X.double(), W, None, *NONE, 0.0, *WINDOW, 0), TypeError,
            "depthwise_conv: input must be float32, float16 or bfloat16, got float64",
        ),
        (
            "depthwise_conv_mean", (X, W[:4], None, *NONE, 0.0, *WINDOW, 0), ValueError,
            "depthwise_conv: weight must be [C, 1, kh, kw] with C = 8, got [4, 1, 3, 3]",
        ),
        (
            "depthwise_conv", (X, W, None, *NONE, 0.0, *WINDOW, 7), ValueError,
            "depthwise_conv: activation must be 0 (none), 1 (relu), 2 (hardswish) or 3 (relu6), got 7",
        ),
        (
            "depthwise_conv", (X, W, None, *NONE, 0.0, 0, *WINDOW[1:], 0), ValueError,
            "depthwise_conv: stride must be at least 1, got (0, 1)",
        ),
        (
            "depthwise_conv", (X, W, None, *NONE, 0.0, 1, 1, -9, 1, 1, 1, 1, 1, 0), ValueError,
            "depthwise_conv: padding must be at least 0, got (-9, 1, 1, 1)",
        ),
        (
            "depthwise_conv", (X, W, None, None, None, V, None, 0.0, *WINDOW, 0), TypeError,
            "depthwise_conv: batch_norm running_var must be a Tensor, got NoneType",
        ),
        (
            "pointwise_conv", (X, P, None, *NONE, 0.0, V, None, 0), ValueError,
            "pointwise_conv: gate must be [N, C] = [2, 8], got [8]",
        ),
        (
            "pointwise_conv", (X, P, None, *NONE, 0.0, None, X[:1], 0), ValueError,
            "pointwise_conv: residual must be [N, O, H, W] = [2, 8, 9, 9], got [1, 8, 9, 9]",
        ),
        (
            "stem_conv", (X, S, None, *NONE, 0.0, V[:3], None, *WINDOW, 0), ValueError,
            "stem_conv: scale must be [C] with C = 8, got [3]",
        ),
        (
            "squeeze_excite_gate", (X[:, :, 0, 0], F1, None, F1, None, 0, 0, 0.2), ValueError,
            "squeeze_excite_gate: fc2_weight must be [C, S, 1, 1] or [C, S] with C = 8, S = 4, got [4, 8]",
        ),
        (
            "squeeze_excite_gate", (X[:, :, 0, 0], F1, None, F2, None, 0, 2, 0.2), ValueError,
            "squeeze_excite_gate: gate must be 0 (hardsigmoid) or 1 (sigmoid), got 2",
        ),
        (
            "squeeze_excite", (X[:, :, :0], F1, None, F2, None, 0, 0, 0.2), ValueError,
            "squeeze_excite: input must not be empty, got [2, 8, 0, 9]",
        ),
    ],
)  # fmt: skip
def test_raw_arguments(op: str, args: tuple, error: type[Exception], message: str) -> None:
    with launch.observe(lambda each: pytest.fail("launched")), pytest.raises(error, match=f"^{re.escape(message)}$"):
        RUN[op](*args)


@pytest.mark.parametrize(
    ("op", "args", "shapes"),
    [
        ("depthwise_conv", (X[:0], W, None, *NONE, 0.0, *WINDOW, 0), [(0, 8, 9, 9)]),
        ("depthwise_conv_mean", (X[:0], W, None, *NONE, 0.0, *WINDOW, 0), [(0, 8, 9, 9), (0, 8)]),
        ("pointwise_conv", (X[:0], P[:5], None, *NONE, 0.0, None, None, 0), [(0, 5, 9, 9)]),
        ("stem_conv", (BYTES[:0], S.half(), None, *NONE, 0.0, None, None, *WINDOW, 0), [(0, 16, 9, 9)]),
        ("squeeze_excite_gate", (X[:0, :, 0, 0], F1, None, F2, None, 0, 0, 0.2), [(0, 8)]),
        ("squeeze_excite", (X[:0], F1, None, F2, None, 0, 0, 0.2), [(0, 8, 9, 9)]),
    ],
)
def test_no_launch_for_no_image(
    op: str, args: tuple, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_packed", "_packed_layers"):  # torch's own kernels would fold and pack
        monkeypatch.setattr(dispatch, name, lambda *args: pytest.fail("packed"))
    with launch.observe(lambda each: pytest.fail("launched")):
        outputs = RUN[op](*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [tuple(output.shape) for output in outputs] == shapes
    assert outputs[0].dtype is (torch.float16 if op == "stem_conv" else torch.float32)
