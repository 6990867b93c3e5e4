"""Kernels that can be told what to do (the reference in their place, right, damaged or raising), and damaged files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mnv3_fast.testing.compare import as_list, op_module
from mnv3_fast.testing.layers import double

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
        outputs = as_list(getattr(module.reference, op)(*double(args)))
        damage = self.damage.get(op.removesuffix("_mean"), lambda x: x)
        return tuple(damage(output.to(dtype)) for output in outputs)


def one_channel_wrong(x: Tensor) -> Tensor:
    """What a wrong tail does: the last channel is off by a percent of the largest value."""
    x = x.clone()
    x[:, -1] += 0.01 * x.abs().max()
    return x


class Evil:
    """What must not be executed."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/mnv3-fast-evil",)


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """A change of a JSON value as a change of its text."""

    def apply(content: bytes) -> bytes:
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return apply
