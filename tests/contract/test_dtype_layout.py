"""Row "dtype/layout": every dtype, memory format and size that torchvision's model takes, with its outputs' dtype."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from tests.contract.common import X, accelerated, assert_same_as_stock, fallbacks, fresh


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_fall_back_with_a_logged_reason(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    model = accelerated()
    model(X)
    model.to(dtype)
    with caplog.at_level(logging.DEBUG, "mnv3_fast"):
        output = model(X.to(dtype))
    assert output.dtype is dtype
    assert torch.equal(output, fresh().to(dtype)(X.to(dtype)))
    words = f"runs on torch: the input is {dtype}, the kernels are float32"
    assert f"InvertedResidual {words}" in caplog.text
    rows = mnv3_fast.explain(model, X.to(dtype)).fallbacks
    assert len(rows) == 14
    assert {row.reason for row in rows} == {f"the input is {dtype}, the kernels are float32"}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ran_before", [False, True])
def test_autocast_gives_torchvisions_dtype(
    dtype: torch.dtype, ran_before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, stock = accelerated(), fresh()
    if ran_before:
        model(X)
    with torch.autocast("cpu", dtype), caplog.at_level(logging.DEBUG, "mnv3_fast"):
        ours, theirs = model(X), stock(X)
        maps = model.features[:4](X), stock.features[:4](X)
    assert ours.dtype is theirs.dtype is dtype
    assert maps[0].dtype is maps[1].dtype
    assert torch.equal(ours, theirs)
    assert "runs on torch: autocast is on" in caplog.text
    with torch.autocast("cpu", enabled=False):
        assert_same_as_stock(model)


def test_autocast_with_gradients() -> None:
    grads = []
    for model in (accelerated(), fresh()):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(X), torch.tensor([1, 2]))
        loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_weights_of_one_block_in_another_dtype() -> None:
    """Torch raises; so does a fused block, which falls back for it."""
    messages = []
    for model in (accelerated(), fresh()):
        model(X)
        model.features[5].half()
        with pytest.raises(RuntimeError) as caught:
            model(X)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


@torch.no_grad()
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("images", FORMATS)
def test_maps_come_in_the_format_of_the_input(images: str, weights: str) -> None:
    x = X.contiguous(memory_format=FORMATS[images])
    model = accelerated().to(memory_format=FORMATS[weights])
    later = torch.randn(2, 16, 16, 16).contiguous(memory_format=FORMATS[images])
    for part, y in ((model.features, x), (model.features[:5], x), (model.features[2:], later)):
        assert part(y).is_contiguous(memory_format=FORMATS[images])
    assert_same_as_stock(model, x)
    assert model(x).is_contiguous()


def strided(kind: str) -> torch.Tensor:
    large = torch.randn(4, 6, 140, 140)
    return {
        "every second pixel": large[:2, :3, ::2, ::2],
        "crop": large[1:3, 2:5, 7:71, 9:73],
        "turned": large[:2, :3, :64, :80].transpose(2, 3),
        "flipped channels": large[:2, [2, 1, 0], :64, :64],
        "expanded batch": large[:1, :3, :64, :64].expand(3, -1, -1, -1),
        "expanded channels": large[:2, :1, :64, :64].expand(-1, 3, -1, -1),
        "HWC permuted": torch.randn(2, 64, 64, 3).permute(0, 3, 1, 2),
        "one value": torch.randn(1, 1, 1, 1).expand(2, 3, 64, 64),
    }[kind]


@torch.no_grad()
@pytest.mark.parametrize(
    "kind",
    [
        "every second pixel",
        "crop",
        "turned",
        "flipped channels",
        "expanded batch",
        "expanded channels",
        "HWC permuted",
        "one value",
    ],
)
def test_views(kind: str) -> None:
    x = strided(kind)
    assert_same_as_stock(accelerated(), x)
    assert testing.relative_error(mnv3_fast.freeze(fresh())(x), fresh()(x)) <= testing.NET_LIMIT


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 3), (31, 33), (65, 64), (224, 224)], ids=str)
def test_any_size(size: tuple[int, int]) -> None:
    model = accelerated()
    x = testing.parity_images(2, *size)
    assert model(x).shape == (2, 1000)
    assert_same_as_stock(model, x)


@torch.no_grad()
def test_an_empty_batch() -> None:
    for run in (accelerated(), mnv3_fast.freeze(fresh())):
        assert run(torch.empty(0, 3, 64, 64)).shape == (0, 1000)
    assert accelerated().features(torch.empty(0, 3, 64, 64)).shape == (0, 576, 2, 2)


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 64, 64), torch.zeros(1, 4, 64, 64), torch.zeros(1, 3, 0, 8), torch.zeros(3), None, "image"],
    ids=["no batch", "four channels", "no rows", "vector", "None", "str"],
)  # fmt: skip
def test_what_torchvision_takes_or_refuses_is_taken_or_refused(x: object) -> None:
    """With an error of the same type; its words may be ours."""
    outcomes = []
    for model in (accelerated(), fresh()):
        try:
            with torch.no_grad():
                outcomes.append(tuple(model(x).shape))
        except Exception as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


@torch.no_grad()
def test_nan_and_infinity_pass_through() -> None:
    for value in (float("nan"), float("inf")):
        x = X.clone()
        x[0, 0, 5, 5] = value
        ours, theirs = accelerated()(x), fresh()(x)
        assert torch.equal(ours[0].isnan(), theirs[0].isnan())
        assert testing.relative_error(ours[1], theirs[1]) <= testing.NET_LIMIT


@torch.no_grad()
def test_the_input_is_left_as_it_is() -> None:
    for run in (accelerated(), mnv3_fast.freeze(fresh())):
        x = copy.deepcopy(X)
        run(x)
        assert torch.equal(x, X)
    assert fallbacks(accelerated()) == []
