"""A launch of a Triton kernel as a value: made by an op, run on a device or by what stands in for one.

What an op does on a GPU is a list of launches. A device runs them in order; the interpreter runs them on CPU tensors;
tests compile them for GPUs that are not there and run, count or disassemble the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: a ``triton.jit`` function.
        grid: programs along x, y and z.
        arguments: what is passed at run time, by parameter name: tensors (a pointer to their first element), ints,
            floats.
        constants: what is compiled in, by parameter name.
        warps, stages: warps a program, and stages of software pipelining.
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Tensor | int | float | None]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 2

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told besides: also that it may fuse multiplications into additions."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    def run(self) -> None:
        """Start the kernel on the current stream of its tensors' device."""
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    def warm_up(self) -> None:
        """Compile the kernel for the current device as :meth:`run` would, without running it."""
        self.kernel.warmup(**self.arguments, **self.constants, **self.options, grid=self.grid)


_observer: Callable[[Launch], bool] | None = None


def run(launches: Sequence[Launch]) -> None:
    """Start some kernels in order on their tensors' device; an observer may take their place (:func:`observe`)."""
    if not launches:
        return
    with _on_device_of(launches[0]):
        for launch in launches:
            if _observer is None or not _observer(launch):
                launch.run()


def _on_device_of(launch: Launch) -> AbstractContextManager[Any]:
    """Triton starts kernels on the current device, wherever their tensors are."""
    tensor = next(value for value in launch.arguments.values() if isinstance(value, Tensor))
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@contextmanager
def _observed(observer: Callable[[Launch], bool]) -> Any:
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def observe(observer: Callable[[Launch], bool]) -> AbstractContextManager[None]:
    """Inside of the ``with`` block each launch is shown to ``observer`` first; it is not run if that returns True."""
    return _observed(observer)
