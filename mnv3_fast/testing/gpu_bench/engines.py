"""What runs a network on a GPU, ourselves and our rivals, each built from the same model and images."""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mnv3_fast.acceleration import accelerate
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.gpu import Progress

Run = Callable[[], Tensor]
"""One pass over the images."""


class Missing(Exception):
    """An engine that cannot take part; the message says why."""


@dataclass(frozen=True)
class Engine:
    """One row of the tables.

    ``build(model, images, dtype)`` takes a float32 model in eval mode and float32 images [N, 3, H, W] on a device,
    keeps both as they are, and compiles what it compiles. ``module`` must be installed for it.
    """

    key: str
    name: str
    build: Callable[[nn.Module, Tensor, torch.dtype], Run]
    module: str | None = None
    ours: bool = False

    def missing_reason(self) -> str | None:
        """Why it cannot even be tried; None if it can."""
        if self.module is None or importlib.util.find_spec(self.module) is not None:
            return None
        return f"{self.module} is not installed"


def _eager(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Run:
    model, images = copy.deepcopy(model).to(dtype), images.to(dtype)
    return lambda: model(images)


def _amp(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Run:
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)

    def run() -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype is not torch.float32):
            return model(images)

    return run


def _channels_last(model: nn.Module, images: Tensor, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    model = copy.deepcopy(model).to(dtype=dtype, memory_format=torch.channels_last)
    return model, images.to(dtype=dtype, memory_format=torch.channels_last)


def _compiled(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Run:
    model, images = _channels_last(model, images, dtype)
    torch._dynamo.reset()
    compiled = torch.compile(model, mode="max-autotune")
    return lambda: compiled(images)


def _tensorrt(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Run:
    import torch_tensorrt

    model, images = _channels_last(model, images, dtype)
    # Its layers have the model's dtype, and float32 is float32.
    options = {"use_explicit_typing": True, "disable_tf32": True}
    compiled: Any = torch_tensorrt.compile(model, ir="dynamo", inputs=[images], **options)
    return lambda: compiled(images)


def _accelerated(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Run:
    fast, images = accelerate(copy.deepcopy(model).to(dtype)), images.to(dtype)
    return lambda: fast(images)


def _frozen(model: nn.Module, images: Tensor, dtype: torch.dtype, progress: Progress | None = None) -> Run:
    engine, images = freeze(copy.deepcopy(model).to(dtype), progress=progress), images.to(dtype)
    return lambda: engine(images)


def telling(engines: Sequence[Engine], progress: Progress) -> list[Engine]:
    """The same engines; frozen tells how far the compilation of its kernels is."""
    told = functools.partial(_frozen, progress=progress)
    return [replace(engine, build=told) if engine.build is _frozen else engine for engine in engines]


FROZEN = "frozen"
ENGINES = (
    Engine("eager", "torchvision eager", _eager),
    Engine("amp", "channels_last, AMP", _amp),
    Engine("compiled", "torch.compile, max-autotune", _compiled),
    Engine("tensorrt", "TensorRT (torch_tensorrt)", _tensorrt, module="torch_tensorrt"),
    Engine("accelerated", "mnv3_fast accelerated", _accelerated, ours=True),
    Engine(FROZEN, "mnv3_fast frozen", _frozen, ours=True),
)
