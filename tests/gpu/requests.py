"""What is asked of the emulator and the simulator: an op with sizes and options, and what is launched and compared for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mnv3_fast.gpu.launch import AnyLaunch
from mnv3_fast.ops.elements import output_size

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Request:
    """An op, the sizes of its input [n, c, h, w], and its options; sizes that are None do not matter to it."""

    op: str
    n: int = 1
    c: int = 8
    h: int = 7
    w: int = 7
    out: int | None = None
    hidden: int | None = None
    squeeze: int | None = None
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    dilation: int = 1
    activation: str = "none"
    gate: bool = False
    residual: bool = False
    mean: bool = False
    bytes: bool = False
    layout: str = "channels_last"
    dtype: str = "fp16"

    @property
    def torch_dtype(self) -> torch.dtype:
        """What the kernel reads and writes."""
        return DTYPES[self.dtype]

    @property
    def window(self) -> tuple[int, ...]:
        """Stride h, w, padding left, right, top, bottom, dilation h, w."""
        around = self.dilation * (self.kernel // 2) if self.padding is None else self.padding
        return (self.stride, self.stride, *[around] * 4, self.dilation, self.dilation)

    @property
    def out_size(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        padding = 2 * self.window[2]
        return tuple(output_size(size, self.kernel, self.stride, padding, self.dilation) for size in (self.h, self.w))

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.out or self.c

    def keeps_shape(self) -> bool:
        """Whether the output is as large as the input."""
        return (self.outputs, *self.out_size) == (self.c, self.h, self.w)

    def __str__(self) -> str:
        plain = Request(self.op)
        parts = [f"{self.n}x{self.c}x{self.h}x{self.w}"]
        for f in fields(self)[5:-1]:
            value = getattr(self, f.name)
            if value != getattr(plain, f.name):
                parts.append(f.name if value is True else f"{f.name} {value}")
        return f"{self.op} {' '.join(parts)} {self.dtype}"


@dataclass
class Result:
    """One output: a function that gives the kernel's once it ran, and what the reference says."""

    ours: Callable[[], Tensor]
    exact: Tensor
    theirs: Tensor


@dataclass
class Run:
    """What to launch, the tensors that it reads and those that it fills, and results to compare."""

    launches: list[AnyLaunch]
    inputs: list[Tensor]
    outputs: list[Tensor]
    results: dict[str, Result]
