"""mmpretrain's backbone and classifier, by doubles of their classes, frozen: all of their methods, on engines."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mnv3_fast
from mnv3_fast import testing
from tests.models import mmpretrain_doubles as doubles
from tests.models.common import assert_same, count_ops
from tests.models.test_mmpretrain import OUTPUTS, X, backbone, classifier
from tests.models.timm_forms import SIZES


def results(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """What each mode and stage gives."""
    found = {stage: model.extract_feat(x, stage=stage) for stage in ("backbone", "neck", "pre_logits")}
    found |= {"tensor": model(x), "loss": model(x, [1, 2], mode="loss")["loss"]}
    found["predict"] = [sample["pred_score"] for sample in model(x, mode="predict")]
    found["test_step"] = [
        sample["pred_score"] for sample in model.test_step({"inputs": x + model.data_preprocessor.mean})
    ]
    return found


def assert_all_same(ours: dict[str, Any], theirs: dict[str, Any], strides: bool = True) -> None:
    for name, expected in theirs.items():
        assert_same(ours[name], expected, strides)


@torch.no_grad()
@pytest.mark.parametrize("which", OUTPUTS)
def test_backbone(which: str) -> None:
    model = backbone()
    model.out_indices = model.out_indices if OUTPUTS[which] is None else OUTPUTS[which]
    engine = mnv3_fast.freeze(model)
    assert isinstance(engine, mnv3_fast.EngineChain)
    for height, width in SIZES:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = testing.parity_images(2, height, width).contiguous(memory_format=memory_format)
            assert_same(engine(x), model(x))
    counts = count_ops(lambda: engine(x))
    assert counts["mnv3_fast::run_plan"] == len(model.out_indices)
    assert not [name for name in counts if "aten::" in name and ("conv" in name or "norm" in name)]


@torch.no_grad()
@pytest.mark.parametrize("convert", [lambda m: m, mnv3_fast.accelerate], ids=["stock", "accelerated"])
def test_a_classifier_keeps_all_its_methods(convert: Callable[[nn.Module], nn.Module]) -> None:
    model = copy.deepcopy(classifier("small"))
    model.head.fc.fc.weight.mul_(0.05)  # scores of large logits would be ones and zeros
    frozen = mnv3_fast.freeze(convert(model))
    assert isinstance(frozen, doubles.ImageClassifier)
    assert all(isinstance(m, mnv3_fast.Engine) for m in (frozen.backbone.engine, frozen.head.fc.engine))
    assert not [module for module in frozen.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for size in SIZES:
        x = testing.parity_images(2, *size)
        assert_all_same(results(frozen, x), results(model, x))
    counts = count_ops(lambda: frozen(x))
    assert counts["mnv3_fast::run_plan"] == 1
    assert not [name for name in counts if "pool" in name or "addmm" in name]
    assert count_ops(lambda: frozen(x, mode="predict"))["mnv3_fast::run_plan"] == 1 + 2
    assert mnv3_fast.explain(frozen, x).fallbacks == []
    with pytest.raises(RuntimeError, match='Invalid mode "logits"'):
        frozen(x, mode="logits")


@torch.no_grad()
def test_copies_of_a_frozen_classifier() -> None:
    frozen = mnv3_fast.freeze(classifier())
    expected = results(frozen, X)
    with doubles.importable():
        for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
            assert type(other) is type(frozen)
            assert_all_same(results(other, X), expected)
    assert all(name.endswith(".plan") for name in frozen.state_dict())
    assert not frozen.train().backbone.engine.training


@torch.no_grad()
def test_images_of_bytes() -> None:
    model = classifier()
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    frozen = mnv3_fast.freeze(model, scale=1 / std, shift=-mean / std)
    normalised = (x.float() - mean[:, None, None]) / std[:, None, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of images that nothing normalises
        assert_same(frozen(x), model(normalised))
        assert_same(frozen.extract_feat(x), model.extract_feat(normalised))


class OtherHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(288, 5)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        return feats[-1]

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        return self.fc(feats[-1])


def _head_norm(model: nn.Module) -> None:
    model.head.layers[0].norm = nn.BatchNorm1d(64).eval()


CUTS: dict[str, Callable[[nn.Module], Any]] = {
    "other head": lambda m: setattr(m, "head", OtherHead()),
    "norm in the head": _head_norm,
    "activation in the head": lambda m: setattr(m.head.layers[0], "act", nn.GELU()),
    "hook on the head": lambda m: m.head.register_forward_hook(lambda module, args, output: output * 2),
    "hook on the neck": lambda m: m.neck.register_forward_hook(lambda module, args, output: (output[0] * 2,)),
    "maximum for a mean": lambda m: setattr(m.neck, "gap", nn.AdaptiveMaxPool2d((1, 1))),
    "two maps": lambda m: setattr(m.backbone, "out_indices", (3, 12)),
    "no head": lambda m: setattr(m, "head", None),
    "no neck": lambda m: (setattr(m, "neck", None), setattr(m, "head", None)),
}


@torch.no_grad()
@pytest.mark.parametrize("cut", CUTS)
def test_where_the_whole_is_no_plan_the_backbone_is(cut: str) -> None:
    model = copy.deepcopy(classifier())
    CUTS[cut](model)
    frozen = mnv3_fast.freeze(model.eval())
    assert type(frozen) is doubles.ImageClassifier
    assert isinstance(frozen.backbone, mnv3_fast.EngineChain)
    assert_same(frozen(X), model(X))
    assert_same(frozen.extract_feat(X), model.extract_feat(X))
    assert count_ops(lambda: frozen(X))["mnv3_fast::run_plan"] == len(model.backbone.out_indices)


class OldClassifier(nn.Module):
    """mmcls 0.x: no modes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = model.backbone, model.neck, model.head

    def extract_feat(self, img: Tensor) -> Any:
        return self.neck(self.backbone(img))

    def forward(self, img: Tensor, return_loss: bool = True) -> Tensor:
        assert not return_loss
        return self.head(self.extract_feat(img)).softmax(1)


OldClassifier.__name__ = "ImageClassifier"
OldClassifier.__module__ = "mmcls.models.classifiers.image"


@torch.no_grad()
def test_mmcls_of_before_modes() -> None:
    model = OldClassifier(copy.deepcopy(classifier())).eval()
    frozen = mnv3_fast.freeze(model)
    assert isinstance(frozen.backbone, mnv3_fast.EngineChain)
    assert_same(frozen(X, return_loss=False), model(X, return_loss=False))
