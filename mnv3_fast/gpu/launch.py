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

    def __post_init__(self) -> None:
        """Raises ValueError for more programs than a GPU starts, which tells no more than "invalid argument"."""
        if any(count > most for count, most in zip(self.grid, MOST_PROGRAMS, strict=True)):
            name = self.kernel.__name__.removesuffix("_kernel")
            raise ValueError(
                f"{name}: the input is too large, it takes {self.grid} programs and a GPU starts at most "
                f"{MOST_PROGRAMS}; split it"
            )

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


MOST_PROGRAMS = (2**31 - 1, 65535, 65535)
"""What CUDA starts at most along x, y and z."""
_observers: list[Callable[[Launch], bool]] = []


def run(launches: Sequence[Launch]) -> None:
    """Start some kernels in order on their tensors' device; an observer may take their place (:func:`observe`)."""
    if not launches:
        return
    tensor = next(value for value in launches[0].arguments.values() if isinstance(value, Tensor))
    with on_device(tensor.device):
        for launch in launches:
            observers = _observers[-1:]  # another thread's may go at any time
            if not (observers and observers[0](launch)):
                launch.run()


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Triton compiles for and starts kernels on the current device, wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _observed(observer: Callable[[Launch], bool]) -> Any:
    _observers.append(observer)
    try:
        yield
    finally:  # its own, also where blocks of two threads overlap
        place = max(i for i, each in enumerate(_observers) if each is observer)
        del _observers[place]


def observe(observer: Callable[[Launch], bool]) -> AbstractContextManager[None]:
    """Inside of the ``with`` block each launch is shown to ``observer`` first; it is not run if that returns True.

    Launches of all threads are; of several observers the one that came last sees them.
    """
    return _observed(observer)
