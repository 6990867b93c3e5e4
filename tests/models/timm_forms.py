"""The forms that timm's MobileNetV3 can be built in, as parity models."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnv3_fast import testing

timm = pytest.importorskip("timm")

SMALL = "mobilenetv3_small_050"
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "stock": (SMALL, {}),
    "no classifier": (SMALL, {"num_classes": 0}),
    "map of conv_head": (SMALL, {"num_classes": 0, "global_pool": ""}),
    **{f"pool {kind}": (SMALL, {"global_pool": kind}) for kind in ("max", "avgmax", "catavgmax", "fast", "fastmax")},
    "grey": (SMALL, {"in_chans": 1}),
    "four channels": (SMALL, {"in_chans": 4}),
    "drop rates": (SMALL, {"drop_rate": 0.3, "drop_path_rate": 0.3}),
    "rw": ("mobilenetv3_rw", {}),
    "150d": ("mobilenetv3_large_150d", {"num_classes": 10}),
    "same": ("tf_mobilenetv3_small_075", {"num_classes": 10}),
    "minimal": ("tf_mobilenetv3_small_minimal_100", {"pad_type": ""}),
}
FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "all": (SMALL, {}),
    "last": (SMALL, {"out_indices": (4,)}),
    "some": (SMALL, {"out_indices": (1, 3)}),
    "negative": (SMALL, {"out_indices": (-2, -1)}),
    "stride 8": (SMALL, {"output_stride": 8}),
    "stride 16": (SMALL, {"output_stride": 16, "in_chans": 4}),
    "expansion": (SMALL, {"feature_location": "expansion", "out_indices": (1, 2, 3)}),
    "same": ("tf_mobilenetv3_small_075", {}),
    "rw": ("mobilenetv3_rw", {}),
}
SIZES = ((64, 64), (65, 65), (75, 96))


@functools.cache
def built(name: str, options: tuple[tuple[str, Any], ...]) -> nn.Module:
    """A parity model; not to be changed."""
    keywords = dict(options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, **keywords)
    size = 128 if name.endswith("150d") else 64  # the deep one's last layers need more pixels for their statistics
    return testing.randomize_(model, 0, size, channels=keywords.get("in_chans", 3))


def form(which: str, **more: Any) -> nn.Module:
    name, options = (FEATURES if more else FORMS)[which]
    return built(name, tuple((options | more).items()))


def kinds_of_images(which: str) -> list[tuple[tuple[int, int], bool]]:
    """Sizes and whether they are channels_last: all of them for one form, one for each other."""
    return list(itertools.product(SIZES, (False, True))) if which in ("stock", "all") else [(SIZES[-1], False)]


def images(model: nn.Module, size: tuple[int, int] = (64, 64), channels_last: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, model.conv_stem.in_channels, *size, generator=generator)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def outputs(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """What each method gives; features for the head come from the method before it."""
    features = model.forward_features(x)
    return {
        "forward": model(x),
        "forward_features": features,
        "forward_head": model.forward_head(features),
        "pre_logits": model.forward_head(features, pre_logits=True),
    }


def intermediates(model: nn.Module, x: Tensor) -> dict[str, Any]:
    return {
        "all": model.forward_intermediates(x),
        "last two": model.forward_intermediates(x, indices=2, intermediates_only=True),
        "early": model.forward_intermediates(x, indices=[0, 2], stop_early=True, intermediates_only=True),
        "blocks": model.forward_intermediates(x, indices=[0, 1, -1, 3], extra_blocks=True),
    }
