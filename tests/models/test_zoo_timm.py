"""Networks of timm's names equal timm's own models with the same weights, and so do their fused forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

import mnv3_fast
from mnv3_fast.models.variants import VARIANTS, Variant, build, find_variant
from mnv3_fast.testing import parity_images
from mnv3_fast.testing.parity import randomize_
from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error
from tests.models.common import assert_runs_fused

TIMM = [name for name, variant in VARIANTS.items() if variant.family == "timm"]
SAME = [name for name in TIMM if VARIANTS[name].padding == "same"]
SMALLER = 97  # of the quick tests; padding SAME is another one at even sizes
SIZES = [(224, 224), (225, 225), (97, 161)]
TORCH_LIMIT = 2e-6  # of two graphs of torch's with other orders of the same sums


def pair(name: str, size: int, **changes: object) -> tuple[nn.Module, nn.Module]:
    """timm's model as a parity model, and ours with its weights."""
    with torch.random.fork_rng(devices=[]):
        theirs = randomize_(timm.create_model(name, pretrained=False), 0, size)
    variant = VARIANTS[name]
    ours = build(replace(variant, **changes) if changes else variant)  # type: ignore[arg-type]
    state = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
    state["classifier.0.weight"] = state["classifier.0.weight"].flatten(1)
    ours.load_state_dict(state)
    return ours.eval(), theirs


@torch.no_grad()
def check(name: str, sizes: list[tuple[int, int]], statistics: int) -> None:
    """The plain network within rounding of timm's, the accelerated and the frozen one within the promise."""
    ours, theirs = pair(name, statistics)
    fast, engine = mnv3_fast.accelerate(ours), mnv3_fast.freeze(ours)
    for height, width in sizes:
        x = parity_images(2, height, width)
        expected = theirs(x)
        assert relative_error(expected[:1], expected[1:]) > 0.1, "another image hardly moves the logits"
        assert relative_error(ours(x), expected) <= TORCH_LIMIT
        assert relative_error(fast(x), expected) <= NET_LIMIT
        assert relative_error(engine(x), expected) <= NET_LIMIT
    assert_runs_fused(fast, engine, x)


@pytest.mark.parametrize("name", TIMM)
def test_equals_timm(name: str) -> None:
    even = [(SMALLER - 1, SMALLER - 1)] if name in SAME else []
    check(name, [(SMALLER, SMALLER), *even], SMALLER)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_equals_timm_at_full_size(name: str) -> None:
    check(name, SIZES, 224)


RULES = {
    ("tf_mobilenetv3_small_100", "padding"): "symmetric",
    ("tf_mobilenetv3_small_100", "bn_eps"): 1e-5,
    ("tf_mobilenetv3_small_minimal_100", "activation"): "HS",
    ("mobilenetv3_small_050", "bn_eps"): 1e-3,
    ("mobilenetv3_small_100", "gate_slope"): 0.2,
    ("mobilenetv3_rw", "squeeze_activation"): "RE",
    ("mobilenetv3_rw", "first_skip"): True,
}


@pytest.mark.parametrize(("name", "rule"), RULES)
@torch.no_grad()
def test_another_rule_is_seen(name: str, rule: str) -> None:
    """A network built by one wrong rule takes the same weights and gives other logits."""
    ours, theirs = pair(name, SMALLER - 1, **{rule: RULES[name, rule]})
    x = parity_images(1, SMALLER - 1)
    assert relative_error(ours(x), theirs(x)) > 1e-3


def preprocessing_of(config: object, test: bool = False) -> tuple:
    """What timm's configuration says, as a Preprocessing has it."""
    size = (test and config.test_input_size) or config.input_size  # type: ignore[attr-defined]
    part = (test and config.test_crop_pct) or config.crop_pct  # type: ignore[attr-defined]
    mean, std = ([255 * value for value in values] for values in (config.mean, config.std))  # type: ignore[attr-defined]
    return int(size[1] / part), size[1], config.interpolation, mean, std  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", TIMM)
def test_weights_are_those_that_timm_knows(name: str) -> None:
    """Tags, files, classes and preprocessing; the first tag is the default."""
    variant = VARIANTS[name]
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    assert sorted(tags) == sorted(weights.tag for weights in variant.weights)
    default = timm.get_pretrained_cfg(name)
    assert (variant.default_weights or "untrained") == default.tag
    assert as_tuple(variant) == preprocessing_of(default)
    for weights in variant.weights:
        config = timm.get_pretrained_cfg(f"{name}.{weights.tag}")
        assert weights.url == (
            config.url or f"https://huggingface.co/timm/{name}.{weights.tag}/resolve/main/model.safetensors"
        )
        chosen = find_variant(f"{name}.{weights.tag}")
        assert chosen.num_classes == config.num_classes
        assert as_tuple(chosen) == preprocessing_of(config)
        if weights.test is None:
            assert config.test_input_size is None
        else:
            assert as_tuple(replace(chosen, preprocessing=weights.test[0])) == preprocessing_of(config, test=True)


def as_tuple(variant: Variant) -> tuple:
    how = variant.preprocessing
    mean, std = ([pytest.approx(value, abs=1e-9) for value in values] for values in (how.mean, how.std))
    return how.resize, how.crop, how.interpolation, mean, std
