"""mmpretrain's backbone and classifier, by doubles of their classes, accelerated: as their own, on our kernels."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mnv3_fast
from mnv3_fast import testing
from tests.models import mmpretrain_doubles as doubles
from tests.models.common import assert_same, count_ops
from tests.models.timm_forms import SIZES

X = testing.parity_images(2, 64, seed=1)
LAYERS = 13  # of small


@functools.cache
def classifier(arch: str = "small_050", **options: Any) -> nn.Module:
    """A parity model; not to be changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = doubles.classifier(arch, **options)
    return testing.randomize_(model, 0, 64)


def backbone(**options: Any) -> nn.Module:
    """A copy of the classifier's backbone, to be changed at will."""
    return copy.deepcopy(classifier(**options).backbone)


def fallbacks(model: nn.Module, x: Tensor | None = X) -> dict[str, str | None]:
    return {row.path: row.reason for row in mnv3_fast.explain(model, x).fallbacks}


OUTPUTS: dict[str, Any] = {"last": None, "two": (3, 12), "all": tuple(range(13)), "a list": [12], "inside": (5,)}


@torch.no_grad()
@pytest.mark.parametrize("which", OUTPUTS)
def test_backbone(which: str) -> None:
    model = backbone()
    model.out_indices = model.out_indices if OUTPUTS[which] is None else OUTPUTS[which]
    fast = mnv3_fast.accelerate(model)
    for height, width in SIZES:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = testing.parity_images(2, height, width).contiguous(memory_format=memory_format)
            assert testing.relative_error(model(x)[-1][:1], model(x)[-1][1:]) > 0.1
            for _ in range(3):
                assert_same(fast(x), model(x))
    whole = which in ("last", "a list")
    counts = count_ops(lambda: fast(x))
    assert counts["mnv3_fast::run_plan"] == (1 if whole else LAYERS)
    assert not [name for name in counts if "conv" in name or "batch_norm" in name]
    explanation = mnv3_fast.explain(fast, x)
    assert explanation.fallbacks == []
    assert [row.path for row in explanation.rows] == [f"layer{i}" for i in range(LAYERS)]
    assert (list(explanation.networks), list(explanation.divided)) == (([""], []) if whole else ([], [""]))


@torch.no_grad()
@pytest.mark.parametrize("arch", ["small", "large"])
def test_classifiers_in_each_mode(arch: str) -> None:
    model = copy.deepcopy(classifier(arch))
    model.head.fc.fc.weight.mul_(0.05)  # scores of large logits would be ones and zeros
    fast = mnv3_fast.accelerate(model)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert repr(fast) == repr(model)
    for _ in range(3):
        assert_same(fast(X), model(X))
        for stage in ("backbone", "neck", "pre_logits"):
            assert_same(fast.extract_feat(X, stage=stage), model.extract_feat(X, stage=stage))
        for ours, theirs in zip(fast(X, mode="predict"), model(X, mode="predict"), strict=True):
            assert_same(ours["pred_score"], theirs["pred_score"])
    assert list(mnv3_fast.explain(fast, X).networks) == ["backbone"]
    assert count_ops(lambda: fast(X, mode="predict"))["mnv3_fast::run_plan"] >= 1


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("options", [{}, {"with_cp": True}, {"frozen_stages": 3}, {"norm_eval": True}], ids=str)
def test_losses_and_gradients(options: dict[str, Any], mode: str) -> None:
    found = []
    model = copy.deepcopy(classifier(**options))
    for network in (mnv3_fast.accelerate(copy.deepcopy(model)), model):
        getattr(network, mode)()
        torch.manual_seed(0)
        loss = network(X, [1, 2], mode="loss")["loss"]
        loss.backward()
        found.append((loss.item(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}))
    (ours, our_grads), (theirs, their_grads) = found
    assert ours == theirs if (mode, options) == ("train", {}) else ours == pytest.approx(theirs, rel=1e-5)
    assert list(our_grads) == list(their_grads)
    assert len(their_grads) > 100
    total = sum(grad.square().sum() for grad in their_grads.values()).sqrt()
    for name, grad in their_grads.items():  # in front of a norm in training mode a bias has noise for a gradient
        assert (our_grads[name] - grad).norm() <= 1e-4 * max(grad.norm(), 1e-2 * total), name


def test_what_trains_says_so() -> None:
    fast = mnv3_fast.accelerate(backbone(frozen_stages=3, norm_eval=True)).train()
    reasons = fallbacks(fast, None)
    assert list(reasons) == [f"layer{i}" for i in range(4, LAYERS)]  # what is frozen runs fused
    assert set(reasons.values()) == {"it is in training mode"}
    assert fallbacks(fast.eval()) == {}
    checkpointing = mnv3_fast.accelerate(backbone(with_cp=True))
    x = torch.randn(1, 16, 9, 9)
    assert fallbacks(checkpointing) == {}
    block = checkpointing.layer1
    assert block.fallback_reason(x) is None
    assert block.fallback_reason(x.requires_grad_()) == "with_cp: it checkpoints its input's gradient"
    assert "CheckpointFunctionBackward" in str(block(x).grad_fn)


def test_copies_and_restore() -> None:
    model = classifier()
    classes = [type(module) for module in model.modules()]
    fast = mnv3_fast.accelerate(model)
    assert [type(module).__name__ for module in fast.modules()] == [cls.__name__ for cls in classes]
    assert all(isinstance(module, cls) for module, cls in zip(fast.modules(), classes, strict=True))
    with torch.no_grad(), doubles.importable():
        expected = fast(X)
        data = pickle.dumps(fast)
        for other in (copy.deepcopy(fast), copy.copy(fast), pickle.loads(data)):
            assert_same(other(X), expected)
            assert fallbacks(other) == {}
            assert [type(m) for m in other.modules()] == [type(m) for m in fast.modules()]
        assert_same(fast.train().eval()(X), expected)
    assert b"mmpretrain_blocks" in data
    again = mnv3_fast.accelerate(fast)
    assert [type(m) for m in again.modules()] == [type(m) for m in fast.modules()]
    assert mnv3_fast.restore(fast) is fast
    assert [type(module) for module in fast.modules()] == classes
    assert pickle.dumps(fast.state_dict()) == pickle.dumps(model.state_dict())


@torch.no_grad()
def test_mmcls_is_taken_too() -> None:
    model = backbone()
    for module in model.modules():
        cls = type(module)
        if cls.__module__.startswith("mmpretrain."):
            place = {"__module__": cls.__module__.replace("mmpretrain.", "mmcls.", 1)}
            module.__class__ = type(cls.__name__, (cls,), place)
    fast = mnv3_fast.accelerate(model)
    assert_same(fast(X), model(X))
    assert fallbacks(fast) == {}
    assert isinstance(mnv3_fast.freeze(model), mnv3_fast.EngineChain)


@torch.no_grad()
def test_classes_of_the_same_name_are_not_taken() -> None:
    model = backbone()
    cls = type(model.layer4)
    for name, place in (("InvertedResidual", "mmpretrain.models.backbones.mobilenet_v2"), ("Mine", "user")):
        changed = copy.deepcopy(model)
        changed.layer4.__class__ = type(
            name, (cls,), {"__module__": place, "forward": lambda self, x: x.mul(2)[:, :24]}
        )
        changed.layer4.with_res_shortcut = False
        changed.layer5 = nn.Conv2d(16, 24, 1)
        fast = mnv3_fast.accelerate(changed)
        assert_same(fast(X), changed(X))
        assert type(fast.layer4) is type(changed.layer4)
        with pytest.raises(ValueError, match="freeze: nothing in MobileNetV3 can be frozen"):
            mnv3_fast.freeze(changed)
    with pytest.raises(ValueError, match="nothing in ConvModule can be replaced"):
        mnv3_fast.accelerate(model.layer0)  # mmcv's module is everywhere: it is taken in a MobileNetV3 alone


@torch.no_grad()
def test_arguments_of_a_convolution() -> None:
    model = backbone()
    fast = mnv3_fast.accelerate(model)
    for arguments in ({}, {"activate": False}, {"norm": False}, {"activate": False, "norm": False}):
        assert_same(fast.layer0(X, **arguments), model.layer0(X, **arguments), strides=False)


@pytest.mark.slow
@torch.no_grad()
def test_captured_whole() -> None:
    fast = mnv3_fast.accelerate(backbone())
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    assert_same(torch.compile(fast, backend=keep, fullgraph=True)(X), fast(X))
    targets = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert len([target for target in targets if "mnv3_fast.network" in target]) == 1
    assert not [target for target in targets if "conv" in target]
