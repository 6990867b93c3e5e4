"""Networks of the other families equal what their tables say, written as plain torch functions (tables.py), and
torchvision's equal its own; so do their fused forms."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
import torchvision
from torch import nn

import mnv3_fast
from mnv3_fast.models.variants import VARIANTS, build
from mnv3_fast.testing import parity_images
from mnv3_fast.testing.parity import randomize_
from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error
from tests.models import tables
from tests.models.common import assert_runs_fused

SMALLER = 97  # of the quick tests; padding SAME is another one at even sizes
SIZES = [(224, 224), (225, 225), (97, 161)]
# Quick ones: each rule once; what differs only in channels has its tensors checked in test_variants.py.
QUICK = [
    "mobilenet-v3-small-050_8xb128_in1k", "keras_mobilenetv3_large_075",
    "keras_mobilenetv3_small_100", "keras_mobilenetv3_small_minimalistic_100", "MobileNetV3_large_x0_35",
    "MobileNetV3_small_x0_35", "MobileNetV3_small_x1_0",
]  # fmt: skip
SAME_GRAPH = 1e-12  # relative, of two fp64 graphs


@cache
def parity_variant(name: str, size: int) -> nn.Module:
    """A parity model of a name; not to be changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomize_(build(VARIANTS[name]), 0, size)


@torch.no_grad()
def check(name: str, sizes: list[tuple[int, int]], statistics: int) -> None:
    """The plain network is the tables' in fp64, the accelerated and the frozen one are within the promise of it."""
    ours = parity_variant(name, statistics)
    double = copy.deepcopy(ours).double()
    fast, engine = mnv3_fast.accelerate(ours), mnv3_fast.freeze(ours)
    for height, width in sizes:
        x = parity_images(2, height, width)
        expected = tables.forward(tables.NETS[name], double.state_dict(), x.double())
        assert relative_error(expected[:1], expected[1:]) > 0.1, "another image hardly moves the logits"
        assert relative_error(double(x.double()), expected) <= SAME_GRAPH
        assert relative_error(fast(x), expected) <= NET_LIMIT
        assert relative_error(engine(x), expected) <= NET_LIMIT
    assert_runs_fused(fast, engine, x)


@pytest.mark.parametrize("name", QUICK)
def test_equals_the_tables(name: str) -> None:
    even = [(SMALLER - 1, SMALLER - 1)] if tables.NETS[name].same else []
    check(name, [(SMALLER, SMALLER), *even], SMALLER)


@pytest.mark.slow
@pytest.mark.parametrize("name", tables.NETS)
def test_equals_the_tables_at_full_size(name: str) -> None:
    check(name, SIZES, 224)


RULES = {
    ("keras_mobilenetv3_small_100", "padding"): "symmetric",
    ("keras_mobilenetv3_small_100", "bn_eps"): 1e-5,
    ("keras_mobilenetv3_small_minimalistic_100", "activation"): "HS",
    ("MobileNetV3_small_x1_0", "gate_slope"): 1 / 6,
    ("MobileNetV3_small_x1_0", "downscale_dropout"): False,
}


@pytest.mark.parametrize(("name", "rule"), RULES)
@torch.no_grad()
def test_another_rule_is_seen(name: str, rule: str) -> None:
    """A network built by one wrong rule takes the same weights and gives other logits."""
    state = parity_variant(name, SMALLER).state_dict()
    wrong = build(replace(VARIANTS[name], **{rule: RULES[name, rule]})).eval()  # type: ignore[arg-type]
    wrong.load_state_dict(state)
    x = parity_images(1, SMALLER - 1)
    assert relative_error(wrong(x), tables.forward(tables.NETS[name], state, x)) > 1e-3


OPTIONS = [
    {"width_mult": 0.35}, {"width_mult": 0.5}, {"width_mult": 0.75}, {"width_mult": 1.25}, {"reduced_tail": True},
    {"dilated": True}, {"dilated": True, "reduced_tail": True, "width_mult": 0.75},
]  # fmt: skip


@torch.no_grad()
def check_torchvision(size: str, options: dict, sizes: list[tuple[int, int]], statistics: int) -> None:
    """A network of create_model's, with the weights of torchvision's own, gives its logits."""
    theirs = randomize_(getattr(torchvision.models, f"mobilenet_v3_{size}")(**options), 0, statistics)
    ours = mnv3_fast.create_model(size, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    engine = mnv3_fast.freeze(ours)
    for height, width in sizes:
        x = parity_images(2, height, width)
        expected = theirs(x)
        assert relative_error(ours(x), expected) <= NET_LIMIT
        assert relative_error(engine(x), expected) <= NET_LIMIT
    assert_runs_fused(ours, engine, x)


@pytest.mark.parametrize("options", [OPTIONS[0], *OPTIONS[-2:]])
def test_options_of_torchvision(options: dict) -> None:
    check_torchvision("small", options, [(SMALLER, SMALLER)], SMALLER)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, *OPTIONS])
@pytest.mark.parametrize("size", ["large", "small"])
def test_options_of_torchvision_at_full_size(size: str, options: dict) -> None:
    check_torchvision(size, options, SIZES, 224)
