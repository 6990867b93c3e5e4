"""A driver of a GPU that is not there: Triton compiles for it, and its launches are written down.

``python -m tests.gpu_dispatch.stub_driver`` runs ops so and prints what was launched as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from mnv3_fast.gpu import launch
from mnv3_fast.gpu.dispatch import RUN
from mnv3_fast.testing import on_device
from mnv3_fast.testing.compare import as_list


@dataclass
class Launched:
    """What the driver was told: the kernel's name, its grid and what was passed to it."""

    name: str
    grid: tuple[int, int, int]
    arguments: list[Any]


@dataclass
class StubDriver:
    """Answers what Triton asks of a driver; starts nothing."""

    target: GPUTarget
    launched: list[Launched] = field(default_factory=list)

    @property
    def utils(self) -> StubDriver:
        return self

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, ...]:
        assert kernel.startswith(b"\x7fELF"), "no cubin"
        return None, name, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def start(x: int, y: int, z: int, stream: int, function: str, *rest: Any) -> None:
            arguments = rest[4:]  # behind metadata, description and two hooks
            self.launched.append(Launched(function, (x, y, z), list(arguments)))

        return start


def main() -> None:
    """Each op once: what it launched by the driver, and by the list of its launches."""
    early = [name for name in sys.modules if name.startswith("mnv3_fast.") and "triton_kernel" in name]
    driver = StubDriver(GPUTarget("cuda", 90, 32))
    triton.runtime.driver.set_active(driver)
    found = []
    for op, index, name in (("depthwise_conv", 3, "depthwise_conv_mean"), ("pointwise_conv", 0, "pointwise_conv")):
        args = on_device.arguments(on_device.FIRST_USE[op][index], torch.float16)
        made: list[launch.Launch] = []
        driver.launched.clear()

        def observe(each: launch.Launch, made: list[launch.Launch] = made) -> bool:
            made.append(each)
            return False

        with launch.observe(observe):
            outputs = as_list(RUN[name](*args))
        found.append(
            {
                "op": name,
                "driver": [[each.name, each.grid, _addresses(each.arguments)] for each in driver.launched],
                "made": [[each.kernel.__name__, each.grid, _passed(each)] for each in made],
                "outputs": [output.data_ptr() for output in outputs],
            }
        )
    print(json.dumps({"imported early": early, "ops": found}))


def _passed(each: launch.Launch) -> list[Any]:
    values = {**each.arguments, **each.constants}
    return _addresses([values[name] for name in each.kernel.arg_names])


def _addresses(values: list[Any]) -> list[Any]:
    return [value.data_ptr() if isinstance(value, Tensor) else value for value in values]


if __name__ == "__main__":
    main()
