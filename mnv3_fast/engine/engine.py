"""Engine: a frozen network as a module."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mnv3_fast import _library
from mnv3_fast.engine import reference
from mnv3_fast.engine.op import OP, check_place, dtype_of
from mnv3_fast.nn.conditions import observed, transform_active
from mnv3_fast.ops import registration


class Engine(nn.Module):
    """A frozen network: one ``mnv3_fast::run_plan`` a pass, then what stays torch's. Inference only.

    Made by :func:`freeze`. The plan is a buffer, so the engine can be copied, pickled, saved, moved to another process
    or CPU and exported. It keeps no tie to the model that it was made from. On an NVIDIA GPU its second call with
    inputs of one kind captures a CUDA graph (docs/contract.md says what holds), which is in no copy and no file.

    Attributes:
        plan: the packed network, uint8.
        geometry: what the output's shape follows from.
        rest: the modules after the plan.
        source: the class of the frozen model.
        normalises: whether the plan normalises images as it loads them.
        restores_format: whether a map has the memory format of the input; else it is channels_last.
    """

    plan: Tensor
    normalises: bool = False
    restores_format: bool = True

    def __init__(self, plan: Tensor, geometry: list[int], input_channels: int, rest: nn.Module, source: str) -> None:
        super().__init__()
        self.register_buffer("plan", plan)
        self.geometry = geometry
        self.input_channels = input_channels
        self.rest = rest
        self.source = source
        super().train(False)

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] of the engine's dtype (or uint8 for a network that starts with its stem), any strides and sizes.

        Raises:
            TypeError, ValueError: naming what came and what is wanted.
            RuntimeError: if grad mode is on and the input requires grad.
        """
        return self.rest(self.run(input))

    def run(self, input: Tensor) -> Tensor:
        """The plan alone, without what follows it; as :meth:`forward`."""
        self._check(input)
        output = self._run(input)
        if self.restores_format and self.geometry[0] % 2 == 1 and input.is_contiguous() and not output.is_contiguous():
            output = output.contiguous()
        return output

    def _run(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or observed() or transform_active():
            return OP(input, self.plan, self.geometry)
        if _library.backend() == "reference":
            return registration.run_reference(reference.run_plan, (input, self.plan, self.geometry))
        if type(input) is not Tensor or not (input.is_cpu and _library.EXTENSION):
            return OP(input, self.plan, self.geometry)
        with torch._C._AutoDispatchBelowAutograd():  # past the op's guard against lost gradients: `_check` is ours
            return OP.default(input, self.plan, [])  # the geometry is for captures

    def _check(self, input: Any) -> None:
        if not isinstance(input, Tensor):
            raise TypeError(f"Engine: input must be a Tensor, got {type(input).__name__}")
        if self.geometry[0] > 1:
            check_place(self.plan, self.dtype)
        if input.dtype is not self.dtype and input.dtype is not torch.uint8:
            wanted, got = (str(dtype).removeprefix("torch.") for dtype in (self.dtype, input.dtype))
            raise TypeError(f"Engine: input must be {wanted} or uint8, got {got}")
        if input.layout is not torch.strided or input.is_nested:
            kind = "a nested one" if input.is_nested else f"layout {input.layout}"
            raise TypeError(f"Engine: input must be a dense (strided) tensor, got {kind}")
        if input.dim() != 4 or input.shape[1] != self.input_channels:
            raise ValueError(f"Engine: input must be [N, {self.input_channels}, H, W], got {list(input.shape)}")
        if input.shape[2] < 1 or input.shape[3] < 1:
            raise ValueError(f"Engine: input must have at least one pixel, got {list(input.shape)}")
        if input.device != self.plan.device:
            raise ValueError(f"Engine: input must be on {self.plan.device} as the engine is, got {input.device}")
        if input.dtype is torch.uint8 and not (self.normalises or torch.compiler.is_compiling()):
            words = "Engine: uint8 images are taken as numbers from 0 to 255; freeze(scale=, shift=) normalises them"
            warnings.warn(words, stacklevel=5)
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "Engine: an engine is for inference and the input requires grad; use mnv3_fast.accelerate"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and output: that of the frozen model."""
        return dtype_of(self.geometry)

    def _apply(self, fn: Any, recurse: bool = True) -> Engine:
        """A plan is for the device that it was made for: on another it would run without its kernels, unseen."""
        moved = fn(self.plan)
        if moved.device != self.plan.device:
            raise RuntimeError(
                f"Engine: cannot be moved from {self.plan.device} to {moved.device}; "
                f'freeze the model there: mnv3_fast.freeze(model.to("{moved.device}"))'
            )
        return super()._apply(fn, recurse)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # a copy, or one from a file: its plan lies in memory of its own
        _library.prefer_huge_pages(self.plan)

    def train(self, mode: bool = True) -> Engine:
        """An engine has no training mode; it stays in eval mode whatever a surrounding model does."""
        return super().train(False)

    def extra_repr(self) -> str:
        kind = "map" if self.geometry[0] % 2 else "features"
        return (
            f"{self.source}, plan of {self.plan.numel() / 2**20:.1f} MiB, output {kind} of {self.geometry[1]} channels"
        )
