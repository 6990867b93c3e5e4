"""Row "hooks": what a user put into a block runs; that block falls back, the others stay fused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.ops.misc import FrozenBatchNorm2d

import mnv3_fast
from mnv3_fast import testing
from tests.contract.common import PARTS, X, accelerated, assert_same_as_stock, fallbacks, stock_of
from tests.models.common import count_ops

CALLS: list[str] = []


def block(model: nn.Module) -> nn.Module:
    return model.features[5]


def called(*_: Any) -> None:
    CALLS.append("called")


def with_keywords(module: nn.Module, args: tuple, keywords: dict) -> None:
    CALLS.append("called")


def backward(module: nn.Module, *grads: Any) -> None:
    CALLS.append("called")


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.register_forward_hook(called),
    "forward, prepended": lambda m: m.register_forward_hook(called, prepend=True),
    "forward, always called": lambda m: m.register_forward_hook(called, always_call=True),
    "forward pre": lambda m: m.register_forward_pre_hook(called),
    "forward pre with keywords": lambda m: m.register_forward_pre_hook(with_keywords, with_kwargs=True),
}
BACKWARD_HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "full backward": lambda m: m.register_full_backward_hook(backward),
    "full backward pre": lambda m: m.register_full_backward_pre_hook(backward),
}
PLACES = {"convolution": (0, 0), "norm": (1, 1), "squeeze-excite": (2,), "inside of it": (2, "fc1"), "project": (3, 0)}


def inside(model: nn.Module, place: str) -> nn.Module:
    module = block(model).block
    for step in PLACES[place]:
        module = getattr(module, step) if isinstance(step, str) else module[step]
    return module


def fused_parts(model: nn.Module) -> int:
    """How many parts run on plans of their own: a model just refreshed is not one plan yet."""
    mnv3_fast.refresh(model)
    with torch.no_grad():
        return count_ops(lambda: model(X)).get("mnv3_fast::run_plan", 0)


@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_inside_runs_and_one_block_falls_back(hook: str, place: str, ran_before: bool) -> None:
    model = accelerated()
    with torch.no_grad():
        for _ in range(3 if ran_before else 0):
            model(X)
        CALLS.clear()
        handle = HOOKS[hook](inside(model, place))
        model(X)
        assert CALLS == ["called"]
    assert fallbacks(model) == ["features.5"]
    handle.remove()
    assert fallbacks(model) == []
    assert fused_parts(model) == PARTS


@pytest.mark.parametrize("place", sorted(set(PLACES) - {"norm"}))  # an activation in place follows: torch refuses
@pytest.mark.parametrize("hook", BACKWARD_HOOKS)
def test_a_backward_hook_inside_runs(hook: str, place: str) -> None:
    model = accelerated()
    BACKWARD_HOOKS[hook](inside(model, place))
    CALLS.clear()
    model(X).sum().backward()
    assert CALLS == ["called"]
    assert fallbacks(model) == ["features.5"]


@pytest.mark.parametrize("hook", HOOKS | BACKWARD_HOOKS)
def test_a_hook_on_the_block_itself_runs_and_it_stays_fused(hook: str) -> None:
    model = accelerated()
    (HOOKS | BACKWARD_HOOKS)[hook](block(model))
    CALLS.clear()
    model(X).sum().backward()
    assert CALLS == ["called"]
    assert fallbacks(model) == []


def test_a_hook_may_change_what_passes() -> None:
    model = accelerated()
    block(model).register_forward_hook(lambda m, args, output: output * 2)
    block(model).register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    assert_same_as_stock(model)
    inside(model, "convolution").register_forward_hook(lambda m, args, output: output * 2)
    assert_same_as_stock(model)


@torch.no_grad()
def test_hooks_of_all_modules() -> None:
    model = accelerated()
    model(X)
    CALLS.clear()
    handle = nn.modules.module.register_module_forward_hook(called)
    try:
        model(X)
        count = len(CALLS)
        CALLS.clear()
        stock_of(model)(X)
        assert len(CALLS) == count > 200
    finally:
        handle.remove()
    assert fused_parts(model) == PARTS


def overridden(model: nn.Module) -> None:
    conv = inside(model, "convolution")
    conv.forward = lambda x: nn.functional.conv2d(x, conv.weight) * 2


def group_norm(model: nn.Module) -> None:
    block(model).block[0][1] = nn.GroupNorm(4, 240)


CHANGES: dict[str, tuple[Callable[[nn.Module], Any], bool]] = {
    "pruning": (lambda m: prune.l1_unstructured(inside(m, "convolution"), "weight", 0.5), False),
    "pruning, structured": (lambda m: prune.ln_structured(inside(m, "project"), "weight", 0.5, 2, 0), False),
    "pruning made permanent": (
        lambda m: (
            prune.l1_unstructured(inside(m, "convolution"), "weight", 0.5),
            prune.remove(inside(m, "convolution"), "weight"),
        ),
        True,
    ),
    "parametrization": (
        lambda m: parametrize.register_parametrization(inside(m, "convolution"), "weight", nn.Softplus()),
        False,
    ),
    "spectral norm": (lambda m: parametrizations.spectral_norm(inside(m, "convolution")), False),
    "spectral norm, old": (lambda m: nn.utils.spectral_norm(inside(m, "convolution")), False),
    "weight norm, old": (lambda m: nn.utils.weight_norm(inside(m, "convolution")).weight_g.data.mul_(1.5), False),
    "weight norm": (lambda m: parametrizations.weight_norm(inside(m, "convolution")), False),
    "parametrization removed": (
        lambda m: (
            parametrize.register_parametrization(inside(m, "convolution"), "weight", nn.Softplus()),
            parametrize.remove_parametrizations(inside(m, "convolution"), "weight"),
        ),
        True,
    ),
    "overridden forward": (overridden, False),
    "GroupNorm": (group_norm, False),
    "InstanceNorm": (lambda m: block(m).block[0].__setitem__(1, nn.InstanceNorm2d(240)), False),
    "LazyBatchNorm that ran": (lambda m: block(m).block[0].__setitem__(1, nn.Identity()), True),
    "BatchNorm without statistics": (
        lambda m: block(m).block[0].__setitem__(1, nn.BatchNorm2d(240, track_running_stats=False)),
        False,
    ),
    "dropout inside": (lambda m: block(m).block[0].append(nn.Dropout(0.5).eval()), False),
}


@torch.no_grad()
@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_one_block_falls_back_where_it_must(change: str, ran_before: bool) -> None:
    model = accelerated()
    before = [model(X) for _ in range(3)][-1] if ran_before else accelerated()(X)
    make, stays_fused = CHANGES[change]
    torch.manual_seed(0)
    make(model)
    model.eval()
    assert not torch.equal(model(X), before)
    assert_same_as_stock(model)
    assert fallbacks(model) == ([] if stays_fused else ["features.5"])
    assert fused_parts(model) == (PARTS if stays_fused else PARTS - 1)


@pytest.mark.parametrize("change", ["pruning", "pruning, structured", "spectral norm, old", "weight norm, old"])
def test_a_changed_model_can_be_accelerated(change: str) -> None:
    """In a copy, too, though it keeps a result of autograd as an attribute, which deepcopy refuses."""
    model = mnv3_fast.restore(accelerated())
    torch.manual_seed(0)
    CHANGES[change][0](model)
    model.eval()
    model(X)
    fast = mnv3_fast.accelerate(model)
    assert fast.features[5].block[0][0] is not model.features[5].block[0][0]
    assert all(a is b for a, b in zip(fast.parameters(), model.parameters(), strict=True))
    assert testing.relative_error(fast(X), model(X)) <= testing.NET_LIMIT
    with torch.no_grad():
        for parameter in model.features[5].parameters():
            parameter.mul_(1.1)
    assert testing.relative_error(fast(X), model(X)) <= testing.NET_LIMIT
    assert fallbacks(fast) == ["features.5"]


def frozen_norms(model: nn.Module) -> None:
    """As torchvision's detectors do with a pretrained backbone."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(child.num_features, child.eps)
                frozen.load_state_dict({k: v for k, v in child.state_dict().items() if k != "num_batches_tracked"})
                setattr(parent, name, frozen)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["FrozenBatchNorm2d", "SyncBatchNorm"])
def test_other_batch_norms_are_folded_too(kind: str) -> None:
    """In eval mode both compute what BatchNorm2d does, so nothing falls back."""
    model = accelerated()
    expected = model(X)
    if kind == "SyncBatchNorm":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        frozen_norms(model)
    assert not any(type(module) is nn.BatchNorm2d for module in model.modules())
    assert testing.relative_error(model(X), expected) <= testing.NET_LIMIT
    assert fallbacks(model) == []


def outcome_of(run: nn.Module) -> str:
    """Which logits are no numbers, or the error."""
    try:
        return str(run(X).isnan().flatten(1).sum(1).tolist())
    except (ValueError, TypeError) as error:
        return str(error)


@torch.no_grad()
@pytest.mark.parametrize("eps", [-1e-4, -5.0, float("nan"), "0.001", None], ids=str)
def test_an_eps_that_is_none_is_left_to_torch(eps: Any) -> None:
    """Newer torch refuses a negative one, older gives what the formula gives."""
    model = accelerated()
    for _ in range(3):
        model(X)
    block(model).block[1][1].eps = eps
    expected = outcome_of(stock_of(model))
    assert expected != "[0, 0]" or eps == -1e-4
    assert outcome_of(model) == expected
    with pytest.raises(ValueError, match=f"freeze: .*BatchNorm with eps {eps} is left to torch"):
        mnv3_fast.freeze(model)
    reasons = [(row.path, row.reason) for row in mnv3_fast.explain(model).fallbacks]
    assert reasons == [("features.5", f"BatchNorm with eps {eps} is left to torch")]


def test_a_network_with_another_norm_runs_on_torch() -> None:
    for norm in (lambda c: nn.GroupNorm(1, c), lambda c: nn.Identity()):
        torch.manual_seed(0)
        model = mnv3_fast.mobilenet_v3_small(norm_layer=norm).eval()
        assert_same_as_stock(model)


@torch.no_grad()
def test_a_fallback_says_why_once_a_call(caplog: pytest.LogCaptureFixture) -> None:
    model = accelerated()
    group_norm(model)
    with caplog.at_level(logging.DEBUG, "mnv3_fast"):
        model(X)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["InvertedResidual runs on torch: norm GroupNorm cannot be folded into a convolution"]
