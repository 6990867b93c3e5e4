"""The check before the first use of the library's kernels as a GPU runs it, with the simulator in the place of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mnv3_fast.gpu import choice
from mnv3_fast.gpu.counts import Properties
from mnv3_fast.gpu.cuda_library import CudaKernel
from mnv3_fast.gpu.first_use import CUDA_KERNELS
from mnv3_fast.gpu.forced_run import run_kernel
from mnv3_fast.gpu.launch import CudaLaunch, Launch
from mnv3_fast.gpu.outcomes import Outcome
from mnv3_fast.testing import on_device
from tests.gpu.simulator import build
from tests.gpu.simulator.run import run

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="the simulator is compiled with g++")
CPU = torch.device("cpu")
H100 = Properties(90, 132, 1.755e9, 3.35e12)
PROGRAMS: dict[str, Callable[[], Path]] = {
    "depthwise_conv": build.depthwise_conv,
    "inverted_residual": build.inverted_residual,
    "gated_project": build.gated_project,
}
WRITTEN = {"depthwise_conv": ("output", "sums"), "inverted_residual": ("output", "parts"), "gated_project": ("output",)}
CHANGED = {"gated_project": ("partials", "arrivals")}
"""What a kernel writes whole, and what in part."""


def checked(
    kernel: str, dtype: torch.dtype, patch: pytest.MonkeyPatch, wrong: Mapping[str, int] | None = None
) -> Outcome:
    """A kernel over its first-use cases; ``wrong`` numbers are given to it in place of its launches' own."""

    def simulate(self: CudaKernel, launch: CudaLaunch) -> None:
        written = [name for name in WRITTEN[self.name] if launch.arguments[name] is not None]
        done = run(PROGRAMS[self.name](), launch, written, wrong, CHANGED.get(self.name, ()))
        assert (done.status, done.faults) == (0, []), launch

    def add_up(self: Launch) -> None:
        """Triton's sums of what the kernel wrote by part."""
        assert self.kernel.__name__ == "channel_sums_kernel"
        of: dict[str, Any] = self.arguments
        of["sums"].copy_((of["input"].sum((2, 3)) * of["factor"])[:, None])

    patch.setattr(CudaKernel, "start", simulate)
    patch.setattr(Launch, "run", add_up)
    with choice.assume(H100), choice.only(kernel):
        return on_device.first_use_outcome(kernel, dtype, lambda op, args: run_kernel(op, args, CPU))


@pytest.mark.parametrize(
    ("kernel", "dtype"), [(kernel, dtype) for kernel, dtypes in CUDA_KERNELS.items() for dtype in dtypes], ids=str
)
def test_right_kernels_pass(kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = checked(kernel, dtype, monkeypatch)
    assert outcome.passed, outcome


@pytest.mark.parametrize("kernel", CUDA_KERNELS)
def test_a_padding_that_is_off_by_one_is_a_miss(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = checked(kernel, torch.float16, monkeypatch, {"pad_left": 0})
    assert not outcome.passed
    assert outcome.error is not None
    assert outcome.limit is not None
    assert outcome.error > outcome.limit
