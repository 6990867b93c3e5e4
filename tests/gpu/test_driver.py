"""Whole passes through Triton's own launching, on a driver that records what it is asked to start.

Between a plan and a GPU nothing is left out but the GPU: Triton binds, compiles and starts each kernel; what it hands to
the driver (kernel, grid, arguments) is compared with the plan.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget

import mnv3_fast
from mnv3_fast.engine.layer_times import layers_of
from mnv3_fast.gpu import execute, first_use, kept
from mnv3_fast.gpu.executor import Executor
from mnv3_fast.gpu.launch import AnyLaunch, CudaLaunch, Launch, observe
from mnv3_fast.ops.depthwise_conv import cuda_kernel as depthwise_conv
from mnv3_fast.ops.inverted_residual import cuda_gated_project
from mnv3_fast.ops.inverted_residual import cuda_kernel as inverted_residual
from mnv3_fast.testing.parity import parity_model
from tests.gpu_dispatch.fake_library import FakeLibrary, install
from tests.gpu_dispatch.stub_driver import StubDriver

BLOCKS = {"large": (15, 8), "small": (11, 9)}
"""Inverted residual blocks of each network, and those with squeeze-excite (Howard et al. 2019, tables 1 and 2)."""

DRIVER = StubDriver(GPUTarget("cuda", 90, 32))  # one for all tests: Triton keeps what it has made for a kernel on it


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> StubDriver:
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: True)
    monkeypatch.setattr(triton.runtime.driver, "_active", DRIVER)
    DRIVER.launched.clear()
    return DRIVER


@pytest.fixture(scope="module", params=["large", "small"])
def engine(request: pytest.FixtureRequest) -> nn.Module:
    return mnv3_fast.freeze(parity_model(request.param, size=64))


def pass_of(engine: nn.Module, batch: int) -> tuple[Executor, torch.Tensor, torch.Tensor]:
    executor = Executor(execute.plan_executor(engine.plan, torch.float16).network)
    executor.network.device = torch.device("meta")  # as large as it takes, without memory
    return executor, torch.empty(batch, 3, 224, 224, dtype=torch.float16, device="meta"), engine.plan


@pytest.mark.parametrize("batch", [1, 128])
def test_what_reaches_the_driver(engine: nn.Module, driver: StubDriver, batch: int) -> None:
    name = "large" if len(engine.geometry) > 2 + 10 * 12 else "small"
    executor, images, plan = pass_of(engine, batch)
    asked: list[Launch] = []
    with observe(lambda launch: bool(asked.append(launch))):
        output = executor.run(images)
    assert output.shape == (batch, 1000)
    blocks, squeezed = BLOCKS[name]
    # A block is expand (but for the first), depthwise, project, and a gate where there is squeeze-excite; stem, last
    # convolution, pool and two linear layers are one each.
    assert len(layers_of(plan, None)) == blocks + 5
    assert len(driver.launched) == 3 * blocks - 1 + squeezed + 5
    assert len(driver.launched) <= {"large": 62, "small": 48}[name]
    assert [(each.name, each.grid) for each in driver.launched] == [
        (launch.kernel.__name__, launch.grid) for launch in asked
    ]
    for each, launch in zip(driver.launched, asked, strict=True):
        given = dict(zip(launch.kernel.arg_names, each.arguments, strict=True))
        for argument, value in {**launch.arguments, **launch.constants}.items():
            assert given[argument] is value or given[argument] == value, argument
    assert all(each.grid[1] <= 65535 and each.grid[2] <= 65535 for each in driver.launched)  # what CUDA allows


def test_kernels_are_compiled_ahead(engine: nn.Module, driver: StubDriver) -> None:
    """With progress; the passes that follow compile nothing."""
    executor, images, _ = pass_of(engine, 1)
    seen: list[tuple[int, int]] = []
    count = executor.precompile([(1, 3, 224, 224), (128, 3, 224, 224)], lambda done, of: seen.append((done, of)))
    assert seen == [(i + 1, count) for i in range(count)]
    assert count <= 20
    assert driver.launched == []
    compiled: list[Any] = []
    triton.knobs.runtime.jit_cache_hook = lambda **keywords: compiled.append(keywords["repr"])
    try:
        executor.run(images)
    finally:
        triton.knobs.runtime.jit_cache_hook = None
    assert compiled == []
    assert driver.launched != []


def test_where_cuda_kernels_are_chosen(engine: nn.Module, driver: StubDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of one image: each launch is started once, by Triton's driver or by the library, and no other."""
    name = "large" if len(engine.geometry) > 2 + 10 * 12 else "small"
    kernels = (depthwise_conv.KERNEL, inverted_residual.KERNEL, cuda_gated_project.KERNEL)
    library = install(FakeLibrary({kernel.symbol: kernel.structure for kernel in kernels}), monkeypatch)
    monkeypatch.setattr(kept, "_kept", {})  # blocks are packed for CUDA kernels, too
    executor, images, _ = pass_of(engine, 1)
    asked: list[AnyLaunch] = []
    with observe(lambda launch: bool(asked.append(launch))):
        executor.run(images)
    cuda = [launch for launch in asked if isinstance(launch, CudaLaunch)]
    triton_ones = [launch for launch in asked if not isinstance(launch, CudaLaunch)]
    assert [called.symbol for called in library.called] == [launch.kernel.symbol for launch in cuda]
    assert [each.name for each in driver.launched] == [launch.kernel.__name__ for launch in triton_ones]
    assert len(driver.launched) + len(library.called) == {"large": 29, "small": 26}[name]
    # Large: stem, depthwise and project, 14 blocks of which 8 have squeeze-excite, convolution, pool, two linear layers.
    count = executor.precompile([(1, 3, 224, 224)])
    assert count == len({launch.key() for launch in asked})
