"""``load_checkpoint`` beside the usual: frozen norms, metadata that nothing can be made with, parts that disagree."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from torchvision.models import mobilenet_v3_small
from torchvision.ops.misc import FrozenBatchNorm2d

import mnv3_fast
from mnv3_fast.models.variants import VARIANTS, build
from tests.checkpoints.test_loading import logits, parity


def test_into_frozen_norms(caplog: pytest.LogCaptureFixture) -> None:
    """torchvision's FrozenBatchNorm2d counts no batches, and has another eps unless it is told."""
    model = parity("mobilenet_v3_small", 5).eval()
    for eps, warned in ((1e-3, False), (1e-5, True)):
        norm = functools.partial(FrozenBatchNorm2d, eps=eps)
        frozen = mobilenet_v3_small(num_classes=5, norm_layer=norm).eval()
        mnv3_fast.load_checkpoint(model.state_dict(), frozen)
        assert ("bn_eps is 1e-05 in the model, 0.001 in mobilenet_v3_small" in caplog.text) is warned
        assert torch.allclose(logits(frozen), logits(model), rtol=1e-4, atol=1e-4) is not warned


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("variant", "mobilenet_v3_small (width_mult=1.2.3)"),
        ("variant", "mobilenet_v3_small (width_mult=99999999)"),
        ("variant", "mobilenet_v3_small (width_mult=0)"),
        ("variant", "resnet50"),
        ("gate_slope", 0),
        ("std", [0, 1, 1]),
        ("resize", 0),
        ("crop", 0),
    ],
)
def test_metadata_that_nothing_can_be_made_with(name: str, text: Any) -> None:
    content = {"state_dict": build(VARIANTS["mobilenet_v3_small"], 5).state_dict()}
    content["mnv3_fast"] = {name: json.dumps(text)}
    with pytest.raises(ValueError, match=f"checkpoint: its metadata has {name} = .* which is none"):
        mnv3_fast.load_checkpoint(content)


def test_names_of_other_classes_are_not_the_models() -> None:
    content: dict[str, Any] = {"state_dict": build(VARIANTS["mobilenet_v3_small"], 3).state_dict()}
    for names, expected in ((["a", "b", "c"], ("a", "b", "c")), (["a"], None)):
        content["meta"] = {"CLASSES": names}
        assert mnv3_fast.load_checkpoint(content).checkpoint_source.classes == expected


def test_a_bias_that_does_not_belong_to_its_weight() -> None:
    state = build(VARIANTS["mobilenet_v3_small"], 5).state_dict() | {"classifier.3.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match="its last layer's weight and bias are of different sizes"):
        mnv3_fast.load_checkpoint(state)
