"""The table of variants: parameters and multiply-adds against what was published and against timm's models."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mnv3_fast
from mnv3_fast.models.variants import VARIANTS, build, find_variant, make_divisible, variant_of
from mnv3_fast.testing import parity_images
from mnv3_fast.testing.parity import randomize_
from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error

# Parameters and millions of multiply-adds (convolutions and fully connected layers, one for each weight and place).
COUNTS = {
    "mobilenet-v3-small-050_8xb128_in1k": (1_593_224, 24.2),
    "mobilenet-v3-small-075_8xb128_in1k": (2_041_872, 43.4),
    "mobilenet-v3-small_8xb128_in1k": (2_542_856, 56.5),
    "mobilenet-v3-large_8xb128_in1k": (5_483_032, 216.6),
}
TIMM = {
    "mobilenet-v3-small-050_8xb128_in1k": "mobilenetv3_small_050",
    "mobilenet-v3-small-075_8xb128_in1k": "mobilenetv3_small_075",
    "mobilenet-v3-small_8xb128_in1k": "mobilenetv3_small_100",
    "mobilenet-v3-large_8xb128_in1k": "mobilenetv3_large_100",
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_multiply_adds(name: str) -> None:
    parameters, macs = COUNTS[name]
    model = build(VARIANTS[name]).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert VARIANTS[name].published is not None
    assert round(parameters / 1e6, 2) == VARIANTS[name].published[2]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    assert round(counter.get_total_flops() / 2e6, 1) == macs


@pytest.mark.parametrize("name", COUNTS)
def test_published_flops(name: str) -> None:
    """The page's FLOPs are multiply-adds of convolutions and fully connected layers; those of large (0.23 G) are met
    only if two operations are added for each value that leaves a BatchNorm (225.4 M)."""
    model = build(VARIANTS[name]).eval()
    outputs = 0

    def count(_: nn.Module, __: tuple, output: torch.Tensor) -> None:
        nonlocal outputs
        outputs += output.numel()

    if "large" in name:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    published = VARIANTS[name].published
    assert published is not None
    assert round((COUNTS[name][1] * 1e6 + 2 * outputs) / 1e9, 2) == published[3]


@pytest.mark.parametrize("name", COUNTS)
def test_shapes_are_those_of_timm(name: str) -> None:
    """timm scales as mmpretrain does; its state_dict lists the same tensors in the same order."""
    ours = [list(p.shape) for p in build(VARIANTS[name]).parameters()]
    theirs = [list(p.shape) for p in timm.create_model(TIMM[name]).parameters()]
    assert [torch.Size(s).numel() for s in ours] == [torch.Size(s).numel() for s in theirs]


@pytest.mark.parametrize("name", VARIANTS)
def test_runs_fused_and_equal(name: str) -> None:
    variant = VARIANTS[name]
    size = variant.preprocessing.crop
    model = randomize_(build(variant), 0, size)
    x = parity_images(2, size)
    with torch.no_grad():
        expected = model(x)
        fast, engine = mnv3_fast.accelerate(model), mnv3_fast.freeze(model)
        assert not mnv3_fast.explain(fast, x).fallbacks
        assert expected.shape == (2, variant.num_classes)
        assert relative_error(fast(x), expected) <= NET_LIMIT
        assert relative_error(engine(x), expected) <= NET_LIMIT


def test_norms_are_those_of_the_configuration() -> None:
    for name, (eps, momentum) in (("small-050_8xb128_in1k", (1e-5, 0.1)), ("large_8xb128_in1k", (1e-3, 0.01))):
        model = build(VARIANTS[f"mobilenet-v3-{name}"])
        norms = {(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
        assert norms == {(eps, momentum)}


def test_names() -> None:
    assert find_variant("mobilenet-v3-small-050_3rdparty_in1k") is VARIANTS["mobilenet-v3-small-050_8xb128_in1k"]
    with pytest.raises(
        ValueError, match="unknown model 'mobilenet-v3-medium'; there are mobilenet-v3-small-050_8xb128"
    ):
        find_variant("mobilenet-v3-medium")


@pytest.mark.parametrize(("channels", "expected"), [(36, 40), (18, 24), (8, 8), (3, 8), (58.67, 56), (12, 16)])
def test_make_divisible(channels: float, expected: int) -> None:
    assert make_divisible(channels) == expected


def test_variant_of_a_path() -> None:
    small = VARIANTS["mobilenet-v3-small-050_8xb128_in1k"]
    for name in (small.name, Path("configs") / f"{small.name}.py", f"C:\\configs\\{small.aliases[0]}.py"):
        assert variant_of(name) is small
    with pytest.raises(TypeError, match="train: config must be a name or a path, got int"):
        variant_of(3, "train")  # type: ignore[arg-type]


def test_other_classes_and_dropout() -> None:
    model = build(VARIANTS["mobilenet-v3-small-050_8xb128_in1k"], num_classes=7, dropout=0.5)
    assert model.classifier[3].out_features == 7
    assert model.classifier[2].p == 0.5
