"""torchvision's detectors and segmenters: the same boxes and masks, accelerated and frozen, on real photos."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.misc import FrozenBatchNorm2d

import mnv3_fast
from mnv3_fast import Engine, EngineChain, testing
from mnv3_fast.testing import detectors
from mnv3_fast.testing.faults import FAULTS
from tests.models.common import WAYS

QUICK = ("ssdlite320", "fasterrcnn_320_fpn")
NAMES = [
    pytest.param(name, marks=() if name in QUICK or name in detectors.SEGMENTERS else pytest.mark.slow)
    for name in (*detectors.DETECTORS, *detectors.SEGMENTERS)
]
PARTS = {"ssdlite320": "backbone", "lraspp": "backbone", "deeplabv3": "backbone"}
X = testing.parity_images(2, 96, 81, seed=3)


@functools.cache
def model_of(name: str) -> nn.Module:
    """A detector; not to be changed."""
    return detectors.detector_model(name)


@functools.cache
def converted(name: str, way: str) -> nn.Module:
    return WAYS[way](model_of(name))


def backbone_of(name: str, model: nn.Module) -> Any:
    """What gives the maps of the network itself, before a pyramid is put on them."""
    return model.get_submodule(PARTS.get(name, "backbone.body"))


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_backbones(name: str, way: str) -> None:
    expected = backbone_of(name, model_of(name))(X)
    other = backbone_of(name, model_of(name))(X.flip(-1))
    for x in (X, X.contiguous(memory_format=torch.channels_last), X[:1], X[:0]):
        found = backbone_of(name, converted(name, way))(x)
        assert list(found) == list(expected)
        for key, value in found.items():
            assert testing.relative_error(value, expected[key][: len(x)]) <= testing.NET_LIMIT, key
            theirs = backbone_of(name, model_of(name))(x)[key]
            assert value.stride() == theirs.stride() or x.shape[0] == 0 or theirs.shape[2] * theirs.shape[3] == 1
    for key, value in other.items():
        assert testing.relative_error(value, expected[key]) > 0.1, "the backbone hardly depends on the image"


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [param for param in NAMES if param.values[0] in detectors.DETECTORS])
def test_detections_on_photos(name: str, way: str) -> None:
    photos = detectors.photos("astronaut", "cat")
    expected, found = model_of(name)(photos), converted(name, way)(photos)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs["scores"]) > 10
        assert detectors.unmatched(ours, theirs, detectors.THRESHOLD) == []


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", detectors.SEGMENTERS)
def test_masks_on_photos(name: str, way: str) -> None:
    photo = detectors.photos("coffee")[0][None, :, :257, :320]
    expected, found = model_of(name)(photo), converted(name, way)(photo)
    assert list(found) == list(expected)
    for key in expected:
        assert len(expected[key].argmax(1).unique()) > 2
        assert detectors.mask_difference(found[key], expected[key]) <= detectors.MASK_LIMIT


@torch.no_grad()
@pytest.mark.parametrize("fault", ["lost depthwise tap", "wrong BatchNorm eps"])
def test_planted_faults_show(fault: str) -> None:
    """In the boxes of a detector and the mask of a segmenter, as the limits above see them."""
    photos = detectors.photos("coffee")
    detector, segmenter = model_of("ssdlite320"), model_of("lraspp")
    broken = FAULTS[fault](detector)(photos)
    assert detectors.unmatched(broken[0], detector(photos)[0], detectors.THRESHOLD)
    photo = photos[0][None, :, :257, :320]
    broken_mask = FAULTS[fault](segmenter)(photo)["out"]
    assert detectors.mask_difference(broken_mask, segmenter(photo)["out"]) > detectors.MASK_LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_is_one_chain_and_explain_shows_the_cut(name: str) -> None:
    frozen = converted(name, "frozen")
    chains = [path for path, module in frozen.named_modules() if isinstance(module, EngineChain)]
    assert chains == [PARTS.get(name, "backbone.body")]
    chain = frozen.get_submodule(chains[0])
    engines = [module for module in frozen.modules() if isinstance(module, Engine)]
    assert engines == list(chain.parts)
    explanation = mnv3_fast.explain(frozen)
    on_kernels = [row.path for row in explanation.rows if row.reason is None]
    assert len(on_kernels) == explanation.fused == (18 if name == "ssdlite320" else 17)
    assert all(path.startswith(chains[0]) for path in on_kernels)
    assert not any(path.startswith(f"{chains[0]}.parts") for path in {row.path for row in explanation.fallbacks})


@torch.no_grad()
def test_frozen_batch_norm() -> None:
    """As Faster R-CNN has it over trained weights."""
    from torchvision.models import mobilenet_v3_large
    from torchvision.models.detection.backbone_utils import _mobilenet_extractor

    backbone = testing.randomize_(mobilenet_v3_large(norm_layer=FrozenBatchNorm2d), 0, 96)
    extractor = _mobilenet_extractor(backbone, True, 3).eval()
    assert isinstance(extractor, BackboneWithFPN)
    expected = extractor.body(X)
    frozen = mnv3_fast.freeze(extractor)
    assert isinstance(frozen.body, EngineChain)
    for key, value in frozen.body(X).items():
        assert testing.relative_error(value, expected[key]) <= testing.NET_LIMIT


@torch.no_grad()
def test_a_backbone_may_give_maps_next_to_each_other() -> None:
    from torchvision.models._utils import IntermediateLayerGetter

    features = testing.parity_model("small", size=64).features
    getter = IntermediateLayerGetter(features, {"0": "stem", "3": "x", "4": "y", "11": "last block", "12": "tail"})
    frozen = mnv3_fast.freeze(getter.eval())
    assert isinstance(frozen, EngineChain)
    expected: dict[str, Tensor] = getter(X)
    for key, value in frozen(X).items():
        assert testing.relative_error(value, expected[key]) <= testing.NET_LIMIT, key


def test_what_cannot_be_an_engine_stays_torchs_and_is_named() -> None:
    model = copy.deepcopy(model_of("lraspp"))
    model.backbone["3"].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"backbone: 3 has a hook, which an engine would not call"):
        mnv3_fast.freeze(model)
