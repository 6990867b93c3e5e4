"""What the model tests share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.testing import parity_model


@functools.cache
def cached_parity_model(name: str, seed: int = 0, size: int = 224, **options: Any) -> nn.Module:
    """A torchvision parity model; not to be changed."""
    return parity_model(name, seed, size, **options)


def in_double(model: nn.Module, x: Tensor) -> Tensor:
    """The model's output in fp64."""
    import copy

    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {"accelerated": mnv3_fast.accelerate, "frozen": mnv3_fast.freeze}


def count_ops(run: Callable[[], Any]) -> dict[str, int]:
    """How often each operator runs, by name, as the profiler sees it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return {event.key: event.count for event in profile.key_averages()}


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output of any structure."""
    output = list(output.values()) if isinstance(output, dict) else output
    return [output] if isinstance(output, Tensor) else [tensor for item in output for tensor in flat(item)]


def assert_same(ours: Any, theirs: Any, strides: bool = True) -> None:
    """Structure, shapes, strides and values."""
    assert type(ours) is type(theirs)
    found, wanted = flat(ours), flat(theirs)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.stride() == b.stride() or not strides
        testing.assert_net_equal(a, b)


def assert_runs_fused(*models_and_input: Any) -> None:
    """Models (all arguments but the last, an input) in which torch computes no convolution and no linear layer."""
    *models, x = models_and_input
    for model in models:
        with torch.no_grad():
            counts = count_ops(lambda model=model: model(x))
        torchs = [
            name for name in counts if name.startswith("aten::") and any(w in name for w in ("conv", "mm", "linear"))
        ]
        assert not torchs, f"{type(model).__name__} leaves {', '.join(torchs)} to torch"
        assert any(name.startswith("mnv3_fast::") for name in counts)
