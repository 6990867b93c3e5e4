"""Whole passes through Triton's own launching, on a driver that records what it is asked to start.

Between a plan and a GPU nothing is left out but the GPU: Triton binds, compiles and starts each kernel; what it hands to
the driver (kernel, grid, arguments) is compared with the plan.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget

import mnv3_fast
from mnv3_fast.engine.layer_times import layers_of
from mnv3_fast.gpu import execute, first_use
from mnv3_fast.gpu.executor import Executor
from mnv3_fast.gpu.launch import Launch, observe
from mnv3_fast.testing.parity import parity_model

BLOCKS = {"large": (15, 8), "small": (11, 9)}
"""Inverted residual blocks of each network, and those with squeeze-excite (Howard et al. 2019, tables 1 and 2)."""


class RecordingDriver:
    """Answers what Triton asks of a driver, and keeps each start of a kernel."""

    def __init__(self) -> None:
        self.started: list[tuple[str, tuple[int, int, int], tuple[Any, ...]]] = []
        self.utils = SimpleNamespace(
            load_binary=lambda name, kernel, shared, device: (1, name, 0, 0, 1024),
            get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
        )

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def start(x: int, y: int, z: int, stream: int, function: str, *rest: Any) -> None:
            self.started.append((function, (x, y, z), rest[4:]))  # behind metadata and hooks

        return start

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def is_active(self) -> bool:
        return True


DRIVER = RecordingDriver()  # one for all tests: Triton keeps what it has made for a kernel on it


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> RecordingDriver:
    monkeypatch.setattr(first_use, "usable", lambda kernel, device, dtype: True)
    monkeypatch.setattr(triton.runtime.driver, "_active", DRIVER)
    DRIVER.started.clear()
    return DRIVER


@pytest.fixture(scope="module", params=["large", "small"])
def engine(request: pytest.FixtureRequest) -> nn.Module:
    return mnv3_fast.freeze(parity_model(request.param, size=64))


def pass_of(engine: nn.Module, batch: int) -> tuple[Executor, torch.Tensor, torch.Tensor]:
    executor = Executor(execute.plan_executor(engine.plan, torch.float16).network)
    executor.network.device = torch.device("meta")  # as large as it takes, without memory
    return executor, torch.empty(batch, 3, 224, 224, dtype=torch.float16, device="meta"), engine.plan


@pytest.mark.parametrize("batch", [1, 128])
def test_what_reaches_the_driver(engine: nn.Module, driver: RecordingDriver, batch: int) -> None:
    name = "large" if len(engine.geometry) > 2 + 10 * 12 else "small"
    executor, images, plan = pass_of(engine, batch)
    asked: list[Launch] = []
    with observe(lambda launch: bool(asked.append(launch))):
        output = executor.run(images)
    assert output.shape == (batch, 1000)
    blocks, squeezed = BLOCKS[name]
    first_without_expand = 1
    # A block is expand, depthwise, project, and a gate where there is squeeze-excite; stem, last convolution, pool and
    # two linear layers are one each.
    assert len(layers_of(plan, None)) == blocks + 5
    assert len(driver.started) == 3 * blocks - first_without_expand + squeezed + 5
    assert len(driver.started) <= {"large": 62, "small": 48}[name]
    assert [(function, grid) for function, grid, _ in driver.started] == [
        (launch.kernel.__name__, launch.grid) for launch in asked
    ]
    for (_, _, arguments), launch in zip(driver.started, asked, strict=True):
        given = dict(zip(launch.kernel.arg_names, arguments, strict=True))
        for argument, value in {**launch.arguments, **launch.constants}.items():
            assert given[argument] is value or given[argument] == value, argument
    assert all(grid[1] <= 65535 and grid[2] <= 65535 for _, grid, _ in driver.started)  # what CUDA allows


def test_kernels_are_compiled_ahead(engine: nn.Module, driver: RecordingDriver) -> None:
    """With progress; the passes that follow compile nothing."""
    executor, images, _ = pass_of(engine, 1)
    seen: list[tuple[int, int]] = []
    count = executor.precompile([(1, 3, 224, 224), (128, 3, 224, 224)], lambda done, of: seen.append((done, of)))
    assert seen == [(i + 1, count) for i in range(count)]
    assert count <= 20
    assert driver.started == []
    compiled: list[Any] = []
    triton.knobs.runtime.jit_cache_hook = lambda **keywords: compiled.append(keywords["repr"])
    try:
        executor.run(images)
    finally:
        triton.knobs.runtime.jit_cache_hook = None
    assert compiled == []
    assert driver.started != []
