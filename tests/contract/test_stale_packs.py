"""Row "stale packs" (promise 4): every write that can be seen takes effect at the next call; the others need refresh."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mnv3_fast
from mnv3_fast import testing
from tests.contract.common import X, accelerated, assert_same_as_stock, fallbacks, fresh
from tests.models.common import count_ops


def conv(model: nn.Module) -> nn.Conv2d:
    return model.features[4].block[0][0]


def norm(model: nn.Module) -> nn.BatchNorm2d:
    return model.features[4].block[1][1]


def step(model: nn.Module, make: Callable) -> None:
    optimizer = make(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    optimizer.step()


def swap_data(model: nn.Module) -> None:
    conv(model).weight.data = conv(model).weight.data * 1.5


def load(model: nn.Module, **options: bool) -> None:
    state = {key: value * 1.01 if value.is_floating_point() else value for key, value in model.state_dict().items()}
    model.load_state_dict(state, **options)


def average(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.9).add_(parameter.data, alpha=0.05)


def tie(model: nn.Module) -> None:
    """One tensor for two layers."""
    model.features[6].block[0][0].weight = model.features[5].block[0][0].weight


def tied_write(model: nn.Module) -> None:
    tie(model)
    model(X)
    model.features[5].block[0][0].weight.mul_(1.2)


def unused_memory(model: nn.Module) -> None:
    """New memory with other values behind the same Parameter, as flat parameters of distributed training have it."""
    weight = conv(model).weight
    weight.data = torch.cat([torch.zeros(7), (weight * 1.5).flatten()])[7:].view_as(weight)


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "in place": lambda m: conv(m).weight.mul_(1.5),
    "copy_": lambda m: conv(m).weight.copy_(conv(m).weight * 1.5),
    ".data in place": lambda m: conv(m).weight.data.mul_(1.5),
    ".data replaced": swap_data,
    ".data into a larger buffer": unused_memory,
    "set_": lambda m: conv(m).weight.set_(conv(m).weight * 1.5),
    "parameter replaced": lambda m: setattr(conv(m), "weight", nn.Parameter(conv(m).weight * 1.5)),
    "parameter deleted and made": lambda m: (
        delattr(conv(m), "weight"),
        conv(m).register_parameter("weight", nn.Parameter(torch.ones(96, 24, 1, 1))),
    ),
    "numpy": lambda m: conv(m).weight.detach().numpy().__imul__(1.5),
    "dlpack": lambda m: torch.from_dlpack(conv(m).weight.detach()).mul_(1.5),
    "load_state_dict": load,
    "load_state_dict assign": lambda m: load(m, assign=True),
    "sgd": lambda m: step(m, lambda p: torch.optim.SGD(p, 0.1)),
    "sgd foreach": lambda m: step(m, lambda p: torch.optim.SGD(p, 0.1, foreach=True)),
    "sgd fused": lambda m: step(m, lambda p: torch.optim.SGD(p, 0.1, fused=True)),
    "adam": lambda m: step(m, lambda p: torch.optim.Adam(p, 0.1, foreach=False)),
    "adam foreach": lambda m: step(m, lambda p: torch.optim.Adam(p, 0.1, foreach=True)),
    "adam fused": lambda m: step(m, lambda p: torch.optim.Adam(p, 0.1, fused=True)),
    "adamw fused": lambda m: step(m, lambda p: torch.optim.AdamW(p, 0.1, fused=True)),
    "rmsprop": lambda m: step(m, lambda p: torch.optim.RMSprop(p, 0.1)),
    "foreach op": lambda m: torch._foreach_mul_([p.data for p in m.parameters()], 1.01),
    "moving average": average,
    "vector_to_parameters": lambda m: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(m.parameters()) * 1.01, m.parameters()
    ),
    "init": lambda m: nn.init.kaiming_normal_(conv(m).weight),
    "clip_": lambda m: [p.data.clamp_(-0.05, 0.05) for p in m.parameters()],
    "tied weights": tied_write,
    "running_mean": lambda m: norm(m).running_mean.add_(0.3),
    "reset_running_stats": lambda m: norm(m).reset_running_stats(),
    "one running_var": lambda m: norm(m).running_var.data[3:4].mul_(3),
    "one bias": lambda m: norm(m).bias.data[3:4].add_(3),
    "eps": lambda m: setattr(norm(m), "eps", 0.2),
    "squeeze-excite bias": lambda m: m.features[4].block[2].fc2.bias.data.add_(0.5),
    "stem": lambda m: m.features[0][0].weight.mul_(1.5),
    "last convolution": lambda m: m.features[12][0].weight.data.mul_(1.5),
    "classifier": lambda m: m.classifier[3].weight.data.mul_(1.5),
}


@torch.no_grad()
@pytest.mark.parametrize("plans", ["of parts", "of the network"])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_takes_effect(write: str, plans: str) -> None:
    model = accelerated()
    if plans == "of parts":
        model.features[1].register_forward_hook(lambda *_: None)  # somebody looks into the network: it is not one plan
    before = model(X)
    for _ in range(2):
        assert torch.equal(model(X), before)  # from the packed weights
    assert (count_ops(lambda: model(X))["mnv3_fast::run_plan"] == 1) == (plans == "of the network")
    WRITES[write](model)
    after = model(X)
    assert not torch.equal(after, before)
    assert_same_as_stock(model)
    for _ in range(6):
        assert torch.equal(model(X), after)  # also once the network is one plan again
    assert fallbacks(model) == []


@torch.inference_mode()
def test_in_inference_mode() -> None:
    """Inference tensors have no version; their values are compared."""
    model = accelerated()
    before = model(X)
    conv(model).weight.data.mul_(1.5)
    assert not torch.equal(model(X), before)
    assert_same_as_stock(model)
    model.load_state_dict({key: value * 1.01 for key, value in model.state_dict().items()}, assign=True)
    middle = model(X)
    conv(model).weight.mul_(1.5)
    assert not torch.equal(model(X), middle)
    assert_same_as_stock(model)


MOVES: dict[str, Callable[[nn.Module], nn.Module]] = {
    ".to(float64) and back": lambda m: m.to(torch.float64).to(torch.float32),
    ".half() and back": lambda m: m.half().float(),
    ".bfloat16() and back": lambda m: m.bfloat16().float(),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "channels_last and back": lambda m: m.to(memory_format=torch.channels_last).to(
        memory_format=torch.contiguous_format
    ),
    "cpu()": lambda m: m.cpu(),
    "train() and eval()": lambda m: m.train().eval(),
    "requires_grad_": lambda m: m.requires_grad_(False),
}


@torch.no_grad()
@pytest.mark.parametrize("move", MOVES)
def test_moves(move: str) -> None:
    model = accelerated()
    for _ in range(3):
        model(X)
    assert MOVES[move](model) is model
    assert_same_as_stock(model)
    assert fallbacks(model) == []


@torch.no_grad()
@pytest.mark.parametrize("multi", [False, True])
def test_averaged_model(multi: bool) -> None:
    model = accelerated()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5) if multi else None).eval()
    averaged.update_parameters(model)
    for _ in range(2):
        before = averaged(X)
        for parameter in model.parameters():
            parameter.mul_(1.02)
        averaged.update_parameters(model)
        assert not torch.equal(averaged(X), before)
        assert_same_as_stock(averaged.module)


@torch.no_grad()
@pytest.mark.parametrize("version", ["ModelEmaV2", "ModelEmaV3"])
def test_timms_moving_averages(version: str) -> None:
    from timm import utils

    model = accelerated()
    ema = getattr(utils, version)(model, decay=0.5)
    before = ema.module(X)
    for parameter in model.parameters():
        parameter.mul_(1.02)
    ema.update(model)
    assert not torch.equal(ema.module(X), before)
    assert_same_as_stock(ema.module)
    ema.set(model)
    assert testing.relative_error(ema.module(X), fresh_like(model)(X)) <= testing.NET_LIMIT


def fresh_like(model: nn.Module) -> nn.Module:
    stock = fresh()
    stock.load_state_dict(model.state_dict())
    return stock


def test_fine_tuning_with_evaluation_in_between() -> None:
    """A training loop: every evaluation sees the last step."""
    model = accelerated()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    seen = []
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), torch.tensor([1, 2])).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            seen.append(model(X))
        assert_same_as_stock(model)
    assert not torch.equal(seen[0], seen[1])


UNSEEN: dict[str, Callable[[nn.Module], object]] = {
    ".data of one weight": lambda w: w.data.__setitem__((1, 1), 50),
    "NumPy, one weight": lambda w: w.detach().numpy().__setitem__((1, 1), 50),
}


@torch.no_grad()
@pytest.mark.parametrize("cure", ["refresh", "eval", "train and eval"])
@pytest.mark.parametrize("write", UNSEEN)
def test_a_write_to_one_weight_needs_refresh(write: str, cure: str) -> None:
    model = accelerated()
    weight = model.features[9].block[3][0].weight  # project of a wide block: larger than what is compared whole
    before = [model(X) for _ in range(3)][-1]
    UNSEEN[write](weight)
    assert torch.equal(model(X), before)  # the limit of what can be seen; docs/numerics.md lists it
    if cure == "refresh":
        assert mnv3_fast.refresh(model) is model
    elif cure == "eval":
        model.eval()
    else:
        model.train().eval()
    assert not torch.equal(model(X), before)
    assert_same_as_stock(model)


@torch.no_grad()
def test_a_copy_has_packed_weights_of_its_own() -> None:
    model = accelerated()
    before = model(X)
    other = copy.deepcopy(model)
    conv(other).weight.mul_(1.5)
    assert torch.equal(model(X), before)
    assert not torch.equal(other(X), before)
