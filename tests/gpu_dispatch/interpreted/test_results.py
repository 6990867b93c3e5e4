"""Each single op by its kernels in Triton's interpreter, beside the reference.

In a process of its own, which tests/gpu_dispatch/test_processes.py starts.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast.gpu import first_use, launch
from mnv3_fast.gpu.dispatch import RUN
from mnv3_fast.ops.elements import empty_nhwc
from mnv3_fast.testing import on_device
from mnv3_fast.testing.cases import Case, depthwise, gate, pointwise, squeeze_excite, stem
from mnv3_fast.testing.compare import as_list
from mnv3_fast.testing.tolerance import assert_close_enough

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("started by tests/gpu_dispatch/test_processes.py", allow_module_level=True)
HALVES = [torch.float32, torch.float16]
SLOW = {("pointwise_conv", "first use 3"), ("depthwise_conv", "first use 2")}
"""As many tiles as a GPU has multiprocessors, and 5x5 with two rows: tests/gpu/interpreted has the kernels' like."""
CASES = [case for cases in on_device.FIRST_USE.values() for case in cases if (case.op, case.name) not in SLOW]
MORE = [
    Case("depthwise_conv", "dilated", depthwise(1, 8, 9, 9, 3, dilation=2, padding=(0, 3, 2, 1)), "expanded"),
    Case("depthwise_conv", "same", depthwise(1, 8, 8, 9, 5, stride=2, padding="same", return_mean=True), "sliced"),
    Case("stem_conv", "same", stem(2, 3, 8, 9, 16, padding="same"), "contiguous"),
    Case("pointwise_conv", "plain", pointwise(3, 20, 2, 3, 16, batch_norm=None, flat=True), "expanded"),
    Case("pointwise_conv", "sliced", pointwise(2, 8, 3, 4, 9, gated=True, residual=True), "sliced"),
    Case("stem_conv", "broadcast", stem(2, 3, 8, 9, 16, activation="relu"), "expanded"),
    Case("squeeze_excite", "sliced", squeeze_excite(2, 9, 4, 3, 5), "sliced"),
    Case("squeeze_excite_gate", "sliced", gate(3, 9, 5), "sliced"),
]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", CASES + MORE, ids=lambda case: f"{case.op} {case}")
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    found: list[Tensor] = []

    def run(op: str, args: tuple) -> Any:
        output = RUN[op](*args)
        found.extend(as_list(output))
        return output

    comparison = on_device.compare(case, dtype, run)
    assert comparison.reason is None, comparison
    for output in found:
        assert output.dim() == 2 or output.stride() == empty_nhwc(output, *output.shape).stride()


def test_parameters_in_float32_beside_half_an_input() -> None:
    """Folded in float32 and rounded once: nearer to fp64 than parameters that were rounded before."""
    case = Case("depthwise_conv", "mixed", depthwise(1, 24, 9, 9, 3, activation="hardswish"))
    wide = on_device.arguments(case, torch.float32)
    args = (wide[0].half(), *wide[1:])
    exact = on_device.functions_of(case)[1](*on_device.double((wide[0].half(), *wide[1:])))
    output = RUN["depthwise_conv"](*args)
    theirs = on_device.functions_of(case)[1](*[on_device.cast(item, torch.float16) for item in args])
    assert_close_enough(output, theirs, exact, dtype=torch.float16)


@pytest.mark.parametrize("given", [0, 1])
def test_only_a_scale_or_a_shift(given: int) -> None:
    case = Case("stem_conv", "half", stem(1, 3, 9, 9, 16, bytes=True))
    args = list(on_device.arguments(case, torch.float32))
    args[8 + given] = None
    reference = on_device.functions_of(case)[1]
    ours, theirs, exact = RUN["stem_conv"](*args), reference(*args), reference(*on_device.double(tuple(args)))
    assert_close_enough(ours, theirs, exact)


def test_the_check_passes_as_a_whole() -> None:
    def run(op: str, args: tuple, device: torch.device) -> Any:
        return first_use.run_kernel(op, args, torch.device("cpu"))

    checker = first_use.Checker(run, lambda device: ("interpreter", "0.0"))
    for kernel in ("squeeze_excite_gate", "stem_conv"):
        assert checker.usable(kernel, torch.device("cuda", 0), torch.float16)


def test_the_check_computes_in_ieee_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is the user's wish for results, and no fault of a kernel."""
    kernel = pytest.importorskip("mnv3_fast.ops.pointwise_conv.triton_kernel")
    monkeypatch.setattr(kernel, "dot_precision", lambda dtype: "tf32")
    args = on_device.arguments(on_device.FIRST_USE["pointwise_conv"][1], torch.float32)
    seen = []
    monkeypatch.setattr(launch.Launch, "run", lambda self: seen.append(self.constants["PRECISION"]))
    first_use.run_kernel("pointwise_conv", args, torch.device("cpu"))
    RUN["pointwise_conv"](*args)
    assert seen == ["ieee", "tf32"]


def test_a_gate_that_is_a_part_of_something() -> None:
    case = Case("pointwise_conv", "gate", pointwise(3, 9, 3, 3, 8, gated=True))
    args = list(on_device.arguments(case, torch.float32))
    args[8] = torch.rand(3, 20)[:, 4:13]
    reference = on_device.functions_of(case)[1]
    ours, theirs, exact = RUN["pointwise_conv"](*args), reference(*args), reference(*on_device.double(tuple(args)))
    assert_close_enough(ours, theirs, exact)
