"""Kernels that can be told what to do: the reference in their place, right, damaged or raising."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.testing.compare import as_list, op_module

CUDA = torch.device("cuda", 0)
KIND = ("NVIDIA Test", "9.0")


class Stand:
    """A :data:`mnv3_fast.gpu.first_use.Runner`: computes in float64, rounds once, and counts its calls.

    Attributes:
        damage: is done to outputs by the name of the op; may raise.
    """

    def __init__(self, **damage: Callable[[Tensor], Tensor]) -> None:
        self.damage = damage
        self.calls: list[tuple[str, torch.dtype]] = []

    def __call__(self, op: str, args: tuple, device: torch.device) -> Any:
        dtype = args[1].dtype if args[0].dtype is torch.uint8 else args[0].dtype
        self.calls.append((op, dtype))
        module = op_module(op.removesuffix("_mean"))
        wide = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        outputs = as_list(getattr(module.reference, op)(*wide))
        damage = self.damage.get(op.removesuffix("_mean"), lambda x: x)
        return tuple(damage(output.to(dtype)) for output in outputs)


def one_channel_wrong(x: Tensor) -> Tensor:
    """What a wrong tail does: the last channel is off by a percent of the largest value."""
    x = x.clone()
    x[:, -1] += 0.01 * x.abs().max()
    return x
