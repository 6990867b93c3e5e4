"""Equality with torchvision on parity models, accelerated and frozen."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import WAYS, cached_parity_model, in_double

NETS = ("large", "small")
SIZES = ((224, 224), (225, 225), (192, 320), (97, 131), (32, 32), (1, 1))
BATCHES = (1, 3, 8, 0)
OPTIONS: dict[str, dict] = {
    "1.0": {},
    "0.35": {"width_mult": 0.35},
    "0.5": {"width_mult": 0.5},
    "0.75": {"width_mult": 0.75},
    "1.25": {"width_mult": 1.25},
    "tail": {"reduced_tail": True},
    "dilated": {"dilated": True},
}
CALIBRATION = {(32, 32): 64, (1, 1): 16}
"""Size of the images that set a model's statistics: 224, but near the images that are to show a fault."""

Run = Callable[[Tensor], Tensor]
Size = tuple[int, int]


@torch.no_grad()
def check(net: str, option: str, convert: Callable[[nn.Module], Run], batch: int, size: Size, nhwc: bool) -> None:
    """The one assertion of this file: shape, strides and values of torchvision's, on images that matter."""
    model = cached_parity_model(net, 0, CALIBRATION.get(size, 224), **OPTIONS[option])
    x = testing.parity_images(batch, *size, seed=3)
    if nhwc:
        x = x.contiguous(memory_format=torch.channels_last)
    theirs = model(x)
    if batch > 1:
        # Behind the padding of a tiny map less is left of an image; a hundred limits still show a fault.
        least = 0.1 if min(size) > 32 else 100 * testing.NET_LIMIT
        assert testing.relative_error(theirs[:1], theirs[1:2]) > least
    ours = convert(model)(x)
    assert ours.shape == theirs.shape
    assert ours.stride() == theirs.stride()
    testing.assert_net_equal(ours, theirs)


Case = tuple[str, str, str, int, Size, bool]
FACTORS = (NETS, OPTIONS, WAYS, BATCHES, SIZES, (False, True))


def settings_of(case: Case) -> set[tuple]:
    """What a case covers: each model both ways, full width at each size, and way, batch, size and layout in pairs.

    A model counts as covered by several images of more than a few pixels. An empty batch compares no values, so it
    covers nothing but itself.
    """
    net, option, way, batch, size, channels_last = case
    if batch == 0:
        return {(net, way, batch), (channels_last, batch)}
    covered = {(option, channels_last), (net, channels_last), (net, batch)}
    covered |= set(itertools.combinations((way, batch, size, channels_last), 2))
    if option == "1.0":
        covered.add((net, way, size))
    if batch > 1 and min(size) > 32:
        covered.add((net, option, way))
    return covered


def covering() -> list[Case]:
    """A few of the product's cases that cover all that ``settings_of`` names; smallest images first."""
    product = sorted(itertools.product(*FACTORS), key=lambda case: case[3] * case[4][0] * case[4][1])
    covers = {case: settings_of(case) for case in product}
    missing = set().union(*covers.values())
    chosen = []
    while missing:
        chosen.append(max(product, key=lambda case: len(covers[case] & missing)))
        missing -= covers[chosen[-1]]
    return chosen


def name_of(case: Case) -> str:
    net, option, way, batch, (height, width), channels_last = case
    return f"{net}-{option}-{way}-{batch}x{height}x{width}-{'nhwc' if channels_last else 'nchw'}"


@pytest.mark.parametrize("case", covering(), ids=name_of)
def test_equals_torchvision(case: Case) -> None:
    net, option, way, *rest = case
    check(net, option, WAYS[way], *rest)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(itertools.product(*FACTORS)), ids=name_of)
def test_equals_torchvision_in_full(case: Case) -> None:
    net, option, way, *rest = case
    check(net, option, WAYS[way], *rest)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("fault", testing.FAULTS)
def test_planted_faults_are_found(fault: str, net: str) -> None:
    """The assertion above, with a faulty model as ours."""
    with pytest.raises(AssertionError, match="relative error"):
        check(net, "1.0", testing.FAULTS[fault], 3, (97, 131), False)


@pytest.mark.parametrize("size", CALIBRATION, ids=str)
@pytest.mark.parametrize("fault", sorted(set(testing.FAULTS) - {"lost depthwise tap"}))
def test_planted_faults_are_found_on_tiny_images(fault: str, size: Size) -> None:
    """A lost tap needs a map of more than one pixel; the rest shows."""
    with pytest.raises(AssertionError, match="relative error"):
        check("large", "1.0", testing.FAULTS[fault], 3, size, False)


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
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("net", ["large", "small"])
def test_every_instruction_set(net: str, way: str, instruction_set: str) -> None:
    model = cached_parity_model(net)
    x = testing.parity_images(2, 97, 131, seed=5)
    op = "inverted_residual"
    ours = WAYS[way](model)(x)
    if instruction_set != "reference":
        assert mnv3_fast._library.take_variant(op) == instruction_set
    testing.assert_net_equal(ours, model(x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "mobilenetv3_small_100", "mobilenetv3_small_050"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = testing.parity_model(lambda: timm.create_model(name), seed=1)
    x = testing.parity_images(2, 192, seed=6)
    for way, convert in WAYS.items():
        testing.assert_net_equal(convert(model)(x), model(x), way)
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
        testing.assert_net_equal(convert(model)(x), model(x))


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
        testing.assert_net_equal(ours, theirs)
    frozen = mnv3_fast.freeze(model.features)(x)
    assert frozen.stride() == model.features(x).stride()
