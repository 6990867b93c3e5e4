"""What the tests of the contract share."""

from __future__ import annotations

import copy

import torch
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import cached_parity_model

X = testing.parity_images(2, 64, seed=1)
PARTS = 13  # of small: stem, eleven blocks, and the end (last convolution, pool and classifier)
ROWS = 14  # that explain has for small; it counts the last convolution and the classifier apart


def fresh() -> nn.Module:
    """torchvision's small network with parity weights, to be changed at will."""
    return copy.deepcopy(cached_parity_model("small"))


def accelerated() -> nn.Module:
    """The same, accelerated in place."""
    return mnv3_fast.accelerate(fresh(), inplace=True)


def stock_of(model: nn.Module) -> nn.Module:
    """A copy of a model on torch's own operators."""
    return mnv3_fast.restore(copy.deepcopy(model))


@torch.no_grad()
def assert_same_as_stock(model: nn.Module, x: torch.Tensor = X) -> None:
    """The model gives what a restored copy of it gives."""
    assert testing.relative_error(model(x), stock_of(model)(x)) <= testing.NET_LIMIT


def fallbacks(model: nn.Module, x: torch.Tensor | None = X) -> list[str]:
    """The paths of what runs on torch."""
    return [row.path for row in mnv3_fast.explain(model, x).fallbacks]
