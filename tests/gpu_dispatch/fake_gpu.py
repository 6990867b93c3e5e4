"""A GPU that is not there, for ``tune``: blocks are computed by their reference, and time is what a test says it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mnv3_fast.gpu import counts, first_use, trial, tuned
from mnv3_fast.gpu.arena import Arena
from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.gpu.network import Network
from mnv3_fast.gpu.tuned import Choices
from mnv3_fast.gpu.tuning import REPEATS
from mnv3_fast.ops.inverted_residual.reference import inverted_residual
from mnv3_fast.ops.network.layout import Stage
from mnv3_fast.testing.layers import double
from tests.gpu_dispatch import fake_library
from tests.gpu_dispatch.common import KIND

Damage = Callable[[Tensor], Tensor]


class FakeGpu:
    """Runs blocks, and times them.

    Attributes:
        damage: is done to what a block computes, by "triton", "cuda" (its depthwise layer) and "fused"; may raise.
        seconds: of a kernel, by the beginning of its name; may be called with the number of the turn.
        timed: the names of the kernels of each thing that was to be timed.
    """

    def __init__(self, seconds: dict[str, Any]) -> None:
        self.seconds, self.timed = seconds, []
        self.damage: dict[str, Damage] = {}
        self._passes: list[tuple[list[AnyLaunch], Stage, Tensor, Tensor]] = []
        self._turns = 0

    def network(self, stages: Sequence[Stage], dtype: torch.dtype) -> Network:
        """In the place of ``Network``: its launches are known again."""
        return _Known(self, stages, dtype)

    def run(self, launches: list[AnyLaunch]) -> None:
        """In the place of ``launch.run``."""
        stage, input, output = next(known[1:] for known in self._passes if known[0] is launches)
        names = " ".join(_names(launches))
        kind = "fused" if "inverted_residual_cuda" in names else "cuda" if "depthwise_conv_cuda" in names else "triton"
        found = inverted_residual(input.double(), double(list(stage.tensors)), stage.spec, stage.constants)
        output.copy_(self.damage.get(kind, lambda x: x)(found.to(output.dtype)))

    def repeated(self, launches: Sequence[AnyLaunch], count: int) -> Any:
        """As a clock does."""
        assert count == REPEATS
        names = _names(launches)
        self.timed.append(names)
        return names

    def times(self, run: list[str], count: int, flush: bool) -> list[float]:
        """As a clock does."""
        assert not flush
        self._turns += 1
        return [REPEATS * sum(map(self._cost, run))] * count

    def bandwidth(self) -> float:
        """As a clock does; nobody asks."""
        raise NotImplementedError

    def _cost(self, name: str) -> float:
        value = next(value for start, value in self.seconds.items() if name.startswith(start))
        return value(self._turns) if callable(value) else value


class _Known(Network):
    def __init__(self, gpu: FakeGpu, stages: Sequence[Stage], dtype: torch.dtype) -> None:
        super().__init__(stages, dtype)
        self.gpu, self.stage = gpu, stages[0]

    def launches(self, input: Tensor, output: Tensor, arena: Arena, upcast: bool = False) -> list[AnyLaunch]:
        found = super().launches(input, output, arena, upcast)
        if output.device.type != "meta":
            self.gpu._passes.append((found, self.stage, input, output))
        return found


def install(patch: pytest.MonkeyPatch, folder: Path) -> FakeGpu:
    """The CPU as a GPU whose CUDA kernels passed their check, and depthwise layers in CUDA are twice as fast.

    By counting Triton's kernels are better. What is measured is kept in a folder.
    """
    gpu = FakeGpu({"inverted_residual": 5e-6, "depthwise_conv_cuda": 1e-6, "depthwise_conv": 2e-6, "": 1e-6})
    choices = Choices(lambda device: first_use.key_of(*KIND), folder)
    fake_library.install(fake_library.FakeLibrary({}), patch)
    patch.setattr(tuned, "choices", lambda: choices)
    patch.setattr(first_use, "usable", lambda *args: True)
    patch.setattr(counts, "better", lambda question, gpu: "triton")
    patch.setattr(trial, "Network", gpu.network)
    patch.setattr(trial.launch, "run", gpu.run)
    return gpu


def _names(launches: Sequence[AnyLaunch]) -> list[str]:
    return [each.kernel.__name__ for each in launches]
