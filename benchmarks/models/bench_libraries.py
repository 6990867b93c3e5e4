"""Models as other libraries hand them out: timm's in their forms, and torchvision's traced feature extractors.

Each entry is compared with the library's own forward before any number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor

from mnv3_fast.acceleration import accelerate
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.nn.parts import copy_model
from mnv3_fast.testing.parity import parity_images, parity_model, randomize_
from mnv3_fast.testing.rivals import OURS
from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error

RIVALS = ("eager", "channels_last", *OURS)
EXTRACTED = {
    "large": ["features.3", "features.6", "features.12", "features.16"],
    "small": ["features.3", "features.12"],
}


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: randomize_(timm.create_model(name, pretrained=False, **options), 0)


def _extractor(net: str) -> Callable[[], nn.Module]:
    return lambda: create_feature_extractor(parity_model(net), EXTRACTED[net]).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{
        name: _timm(name)
        for name in (
            "mobilenetv3_small_050",
            "mobilenetv3_small_100",
            "mobilenetv3_large_100",
            "mobilenetv3_large_150d",
            "mobilenetv3_rw",
            "tf_mobilenetv3_small_100",
            "tf_mobilenetv3_large_100",
            "tf_mobilenetv3_large_minimal_100",
        )
    },
    "mobilenetv3_large_100, features_only": _timm("mobilenetv3_large_100", features_only=True),
    "mobilenetv3_large_100, features_only, output_stride 16": _timm(
        "mobilenetv3_large_100", features_only=True, output_stride=16
    ),
    "mobilenetv3_large_100, catavgmax": _timm("mobilenetv3_large_100", global_pool="catavgmax"),
    "mobilenetv3_large_100, num_classes 0": _timm("mobilenetv3_large_100", num_classes=0),
    "torchvision large, feature extractor": _extractor("large"),
    "torchvision small, feature extractor": _extractor("small"),
}


@functools.cache
def _expected(name: str) -> tuple[nn.Module, Tensor, Any]:
    model, x = MODELS[name](), parity_images(1, 224)
    return model, x, model(x)


def _error(ours: Any, theirs: Any) -> float:
    """The worst relative error of one output or of several."""
    if isinstance(theirs, Tensor):
        return relative_error(ours, theirs)
    pairs = (
        zip(ours.values(), theirs.values(), strict=True) if isinstance(theirs, dict) else zip(ours, theirs, strict=True)
    )
    return max(relative_error(*pair) for pair in pairs)


def _calls(model: nn.Module, x: Tensor) -> dict[str, Callable[[], Any]]:
    nhwc = x.contiguous(memory_format=torch.channels_last)
    last = copy_model(model, {}).to(memory_format=torch.channels_last)
    accelerated, frozen = accelerate(model), freeze(model)
    found = (lambda: model(x), lambda: last(nhwc), lambda: accelerated(x), lambda: frozen(x))
    return dict(zip(RIVALS, found, strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rival", RIVALS)
@torch.no_grad()
def bench_library(compete: Callable[..., None], name: str, rival: str) -> None:
    """Batch 1, 224 x 224, one thread."""
    model, x, expected = _expected(name)
    with FlopCounterMode(display=False) as counter:
        model(x)

    def check(rival: str, output: Any) -> float:
        error = _error(output, expected)
        assert error <= NET_LIMIT, f"{rival} is wrong: {error:.3g}"
        return error

    compete(name, rival, lambda: _calls(model, x), check, OURS[1], counter.get_total_flops() // 2, 0, 1)
