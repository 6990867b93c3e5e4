"""torchvision's detectors and segmenters on a real photo: the whole model, and its backbone by itself.

Around the backbone most of the time is torch's own (heads, non-maximum suppression, upsampling), so the two ratios
differ. Each entry passes the comparison of boxes, masks or maps before any number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mnv3_fast.acceleration import accelerate
from mnv3_fast.engine.freeze import freeze
from mnv3_fast.testing import detectors
from mnv3_fast.testing.rivals import OURS
from mnv3_fast.testing.tolerance import NET_LIMIT, relative_error

RIVALS = ("torchvision eager", "torchvision channels_last", *OURS, f"{OURS[1]}, channels_last")
"""With channels_last weights torch runs its own layers behind the backbone faster, whoever runs the backbone."""
SEGMENTED = (520, 520)
"""The photo that segmenters get, as torchvision's transforms size it."""


@functools.cache
def _models(name: str) -> dict[str, nn.Module]:
    """A model in the rivals' hands."""
    model = detectors.detector_model(name)
    last = detectors.detector_model(name).to(memory_format=torch.channels_last)
    return dict(zip(RIVALS, (model, last, accelerate(model), freeze(model), freeze(last)), strict=True))


def _photo(name: str) -> Any:
    photo = detectors.photos("astronaut")
    if name in detectors.DETECTORS:
        return photo
    return torch.nn.functional.interpolate(photo[0][None], SEGMENTED, mode="bilinear", antialias=True)


def _backbone_input(name: str, model: nn.Module) -> Tensor:
    """What the backbone gets to see of the photo."""
    seen: list[Tensor] = []
    backbone: Any = model.backbone
    handle = backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(_photo(name))
    handle.remove()
    return seen[0].clone()


def _error(name: str, ours: Any, theirs: Any) -> float:
    """The worst relative error of maps; of boxes and masks the part that differs."""
    if isinstance(theirs, dict):
        return max(relative_error(ours[key], theirs[key]) for key in theirs)
    found = [detectors.unmatched(*pair, detectors.THRESHOLD) for pair in zip(ours, theirs, strict=True)]
    assert found == [[] for _ in found], f"{name} finds other boxes: {found[0][:2]}"
    return 0.0


def _macs(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", [*detectors.DETECTORS, *detectors.SEGMENTERS])
@pytest.mark.parametrize("part", ["whole", "backbone"])
@pytest.mark.parametrize("rival", RIVALS)
@torch.no_grad()
def bench_detector(compete: Callable[..., None], name: str, part: str, rival: str) -> None:
    """Batch 1, one thread."""
    models = _models(name)
    stock = models["torchvision eager"]
    x = _photo(name) if part == "whole" else _backbone_input(name, stock)

    def caller(rival: str, model: Any) -> Callable[[], Any]:
        network = model if part == "whole" else model.backbone
        nhwc = isinstance(x, Tensor) and "channels_last" in rival
        given = x.contiguous(memory_format=torch.channels_last) if nhwc else x
        return lambda: network(given)

    runs = {rival: caller(rival, model) for rival, model in models.items()}
    expected = runs["torchvision eager"]()

    def check(rival: str, output: Any) -> float:
        error = _error(rival, output, expected)
        assert error <= NET_LIMIT, f"{rival} is wrong: {error:.3g}"
        return error

    compete(f"{name}/{part}", rival, lambda: runs, check, RIVALS[-1], _macs(runs["torchvision eager"]), 0, 1)
