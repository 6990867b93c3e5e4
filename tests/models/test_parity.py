"""Equality with torchvision on parity models, accelerated and frozen."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import WAYS, cached_parity_model, in_double

SIZES = ((224, 224), (225, 225), (192, 320), (97, 131), (32, 32), (1, 1))
BATCHES = (1, 3, 8, 0)
VARIANTS: dict[str, tuple[str, dict]] = {
    "large": ("large", {}),
    "small": ("small", {}),
    "large-0.35": ("large", {"width_mult": 0.35}),
    "large-0.5": ("large", {"width_mult": 0.5}),
    "small-0.75": ("small", {"width_mult": 0.75}),
    "large-1.25": ("large", {"width_mult": 1.25}),
    "small-0.35": ("small", {"width_mult": 0.35}),
    "small-1.25": ("small", {"width_mult": 1.25}),
    "large-tail": ("large", {"reduced_tail": True}),
    "small-tail": ("small", {"reduced_tail": True}),
    "large-dilated": ("large", {"dilated": True}),
    "small-dilated": ("small", {"dilated": True}),
}
MORE_VARIANTS = {
    f"{net}-{width}": (net, {"width_mult": width}) for net in ("large", "small") for width in (0.35, 0.5, 0.75, 1.25)
}


@torch.no_grad()
def check(net: str, options: dict, way: str, batch: int, size: tuple[int, int], channels_last: bool) -> None:
    model = cached_parity_model(net, **options)
    x = testing.parity_images(batch, *size, seed=3)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    theirs, ours = model(x), WAYS[way](model)(x)
    assert ours.shape == theirs.shape
    assert ours.stride() == theirs.stride()
    assert testing.relative_error(ours, theirs) <= testing.NET_LIMIT


def pairwise() -> list[tuple]:
    """Every variant both ways; sizes, batches and layouts in turn."""
    cases = []
    for i, (variant, way) in enumerate(itertools.product(VARIANTS, WAYS)):
        cases.append((variant, way, BATCHES[(i // 2) % 4], SIZES[i % 6], bool(i // 3 % 2)))
    for net, way in itertools.product(("large", "small"), WAYS):
        cases += [(net, way, BATCHES[i % 4], size, bool(i % 2)) for i, size in enumerate(SIZES)]
    return sorted(set(cases))


@pytest.mark.parametrize(("variant", "way", "batch", "size", "channels_last"), pairwise())
def test_equals_torchvision(variant: str, way: str, batch: int, size: tuple[int, int], channels_last: bool) -> None:
    net, options = VARIANTS[variant]
    check(net, options, way, batch, size, channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("variant", VARIANTS | MORE_VARIANTS)
def test_equals_torchvision_in_full(
    variant: str, way: str, batch: int, size: tuple[int, int], channels_last: bool
) -> None:
    net, options = (VARIANTS | MORE_VARIANTS)[variant]
    check(net, options, way, batch, size, channels_last)


@torch.no_grad()
def test_error_is_torchvisions_own_size() -> None:
    """The geometric mean of our error over torchvision's, both against fp64, over twelve seeds and configurations."""
    ratios: dict[str, list[float]] = {way: [] for way in WAYS}
    configurations = [("large", 224), ("small", 224), ("large", 160), ("small", 97), ("small", 225), ("large", 97)]
    for seed, (net, size) in enumerate(configurations * 2):
        model = cached_parity_model(net, seed, size)
        x = testing.parity_images(1, size, seed=seed)
        exact = in_double(model, x)
        theirs = max(
            testing.relative_error(model(x), exact),
            testing.relative_error(model(x.contiguous(memory_format=torch.channels_last)), exact),
        )
        for way, convert in WAYS.items():
            ratios[way].append(testing.relative_error(convert(model)(x), exact) / theirs)
    for way, values in ratios.items():
        assert testing.geometric_mean(values) <= testing.MEAN_RATIO_LIMIT, (way, values)


@torch.no_grad()
@pytest.mark.parametrize("fault", testing.FAULTS)
def test_planted_faults_are_found(fault: str) -> None:
    model = cached_parity_model("small")
    x = testing.parity_images(2, 224, seed=4)
    assert testing.relative_error(testing.FAULTS[fault](model)(x), mnv3_fast.freeze(model)(x)) > testing.NET_LIMIT


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("net", ["large", "small"])
def test_every_instruction_set(net: str, way: str, instruction_set: str) -> None:
    model = cached_parity_model(net)
    x = testing.parity_images(2, 97, 131, seed=5)
    op = "inverted_residual"
    ours = WAYS[way](model)(x)
    if instruction_set != "reference":
        assert mnv3_fast._library.take_variant(op) == instruction_set
    assert testing.relative_error(ours, model(x)) <= testing.NET_LIMIT


@torch.no_grad()
@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "mobilenetv3_small_100", "mobilenetv3_small_050"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = testing.parity_model(lambda: timm.create_model(name), seed=1)
    x = testing.parity_images(2, 192, seed=6)
    for way, convert in WAYS.items():
        assert testing.relative_error(convert(model)(x), model(x)) <= testing.NET_LIMIT, way
    explanation = mnv3_fast.explain(mnv3_fast.accelerate(model), x)
    assert not explanation.fallbacks
    assert explanation.fused == 1 + sum(len(stage) for stage in model.blocks)


@torch.no_grad()
def test_inside_a_larger_model() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = testing.parity_model("small", seed=2)
            self.head = nn.Linear(1000, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone(x))

    model = Pair().eval()
    x = testing.parity_images(2, 97, seed=7)
    for convert in WAYS.values():
        assert testing.relative_error(convert(model)(x), model(x)) <= testing.NET_LIMIT


@torch.no_grad()
@pytest.mark.parametrize("channels_last", [False, True])
def test_features_keep_the_memory_format(channels_last: bool) -> None:
    model = cached_parity_model("small")
    x = testing.parity_images(2, 97, 131)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    accelerated = mnv3_fast.accelerate(model)
    for part, stock in ((accelerated.features, model.features), (accelerated.features[:5], model.features[:5])):
        ours, theirs = part(x), stock(x)
        assert ours.stride() == theirs.stride()
        assert testing.relative_error(ours, theirs) <= testing.NET_LIMIT
    frozen = mnv3_fast.freeze(model.features)(x)
    assert frozen.stride() == model.features(x).stride()
