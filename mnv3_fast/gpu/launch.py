"""A launch of a kernel as a value: made by an op, run on a device or by what stands in for one.

What an op does on a GPU is a list of launches, of Triton's kernels (:class:`Launch`) and of the library's CUDA kernels
(:class:`CudaLaunch`). A device runs them in order; the interpreter runs Triton's on CPU tensors; tests compile them for
GPUs that are not there and run, count or disassemble the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from mnv3_fast.gpu.cuda_library import CudaKernel

ALIGNMENT = 16
"""Bytes of the widest load."""


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
        _check_grid(self)

    @property
    def threads(self) -> int:
        """Of a program."""
        return 32 * self.warps

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

    def key(self) -> tuple[Any, ...]:
        """Equal for two launches if the same compiled kernel serves both."""
        from mnv3_fast.gpu import compilation  # imports Triton, which a launch of a CUDA kernel does without

        return compilation.key(self)


@dataclass(frozen=True)
class CudaLaunch:
    """One launch of a kernel of ``mnv3_fast/_cuda.so``, with what :class:`Launch` has for those who hold both.

    Attributes:
        kernel: which, and the C structure that it takes.
        grid: blocks along x, y and z.
        arguments: what the structure is filled with, by the name of the field: tensors (a pointer to their first
            element), ints, floats, None (a null pointer).
        threads: of a block.
        shared: bytes of dynamic shared memory.
        constants: what chooses among the kernel's compiled variants, for labels and keys; nothing is passed of it.
    """

    kernel: CudaKernel
    grid: tuple[int, int, int]
    arguments: dict[str, Tensor | int | float | None]
    threads: int
    shared: int = 0
    constants: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError as a :class:`Launch` does."""
        _check_grid(self)

    @property
    def warps(self) -> int:
        """Of a block."""
        return -(-self.threads // 32)

    def run(self) -> None:
        """Start the kernel on the current stream of its tensors' device.

        Raises:
            RuntimeError: without the library, and with CUDA's words where it refuses the launch.
        """
        self.kernel.start(self)

    def warm_up(self) -> None:
        """Load the library, which is compiled already."""
        self.kernel.function()

    def key(self) -> tuple[Any, ...]:
        """Equal for two launches if the same compiled kernel serves both."""
        return self.kernel.__name__, tuple(sorted(self.constants.items()))


AnyLaunch = Launch | CudaLaunch


def is_aligned(tensor: Tensor) -> bool:
    """Whether a tensor starts at a multiple of :data:`ALIGNMENT`; without memory (meta, fake): in its storage."""
    if tensor.device.type == "meta" or isinstance(tensor, FakeTensor):
        return tensor.storage_offset() * tensor.element_size() % ALIGNMENT == 0  # torch aligns storage
    return tensor.data_ptr() % ALIGNMENT == 0


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that starts where wide loads may: a parameter may be part of a larger buffer."""
    return tensor if is_aligned(tensor) else tensor.clone()


def _check_grid(launch: AnyLaunch) -> None:
    if any(count > most for count, most in zip(launch.grid, MOST_PROGRAMS, strict=True)):
        name = launch.kernel.__name__.removesuffix("_kernel")
        raise ValueError(
            f"{name}: the input is too large, it takes {launch.grid} programs and a GPU starts at most "
            f"{MOST_PROGRAMS}; split it"
        )


MOST_PROGRAMS = (2**31 - 1, 65535, 65535)
"""What CUDA starts at most along x, y and z."""
_observers: list[Callable[[AnyLaunch], bool]] = []


def run(launches: Sequence[AnyLaunch]) -> None:
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
    """Kernels are compiled for and started on the current device, wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def with_index(device: torch.device) -> torch.device:
    """The device itself, with the number of the current one where it has none."""
    if device.index is not None:
        return device
    return torch.device(device.type, torch.cuda.current_device() if torch.cuda.is_available() else 0)


@contextmanager
def _observed(observer: Callable[[AnyLaunch], bool]) -> Any:
    _observers.append(observer)
    try:
        yield
    finally:  # its own, also where blocks of two threads overlap
        place = max(i for i, each in enumerate(_observers) if each is observer)
        del _observers[place]


def observe(observer: Callable[[AnyLaunch], bool]) -> AbstractContextManager[None]:
    """Inside of the ``with`` block each launch is shown to ``observer`` first; it is not run if that returns True.

    Launches of all threads are; of several observers the one that came last sees them.
    """
    return _observed(observer)


def observed() -> bool:
    """Whether somebody observes launches (:func:`observe`)."""
    return bool(_observers)
