"""A network in which nothing changes runs as one plan, and is one no more as soon as anything does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.engine import cache
from mnv3_fast.models.description import describe_net
from mnv3_fast.testing.compare import op_module
from tests.models import test_end as end
from tests.models.common import cached_parity_model, count_ops

X = testing.parity_images(2, 64, seed=1)


def plans(model: nn.Module) -> int:
    return count_ops(lambda: model(X)).get("mnv3_fast::run_plan", 0)


@pytest.fixture
def whole() -> nn.Module:
    """One plan altogether, packed."""
    model = mnv3_fast.accelerate(copy.deepcopy(cached_parity_model("small")), inplace=True)
    with torch.no_grad():
        for _ in range(3):
            model(X)
        assert plans(model) == 1
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        end._replace_classifier,
        end._replace_all,
        end._linear_alone,
        end._identity,
        end._without_bias,
        end._write,
        end._write_data,
        end._write_norm,
    ],
)
def test_changes_of_the_end_take_effect(whole: nn.Module, change: Callable[[nn.Module], None]) -> None:
    before = whole(X)
    change(whole)
    expected = end.stock(whole)(X)
    for _ in range(6):
        after = whole(X)
        assert after.shape != before.shape or testing.relative_error(after, before) > 1e-3
        assert testing.relative_error(after, expected) <= testing.NET_LIMIT
    assert plans(whole) == 1


@torch.no_grad()
def test_a_restored_block_runs_on_torch(whole: nn.Module) -> None:
    mnv3_fast.restore(whole.features[4])
    for _ in range(6):
        counts = count_ops(lambda: whole(X))
        assert counts["aten::batch_norm"] == 3
        assert counts["mnv3_fast::run_plan"] == 12


@torch.no_grad()
@pytest.mark.parametrize(
    "module", ["features", "features.5", "features.5.block", "avgpool", "classifier", "classifier.1"]
)
def test_a_hook_anywhere_runs(whole: nn.Module, module: str) -> None:
    calls: list[int] = []
    handle = whole.get_submodule(module).register_forward_hook(lambda *_: calls.append(1))
    for count in range(1, 6):
        whole(X)
        assert len(calls) == count
    handle.remove()
    for _ in range(40):
        whole(X)
    assert plans(whole) == 1
    assert len(calls) == 5


@torch.no_grad()
def test_parts_have_no_packed_weights_of_their_own(whole: nn.Module) -> None:
    """They would only take memory twice."""
    assert not [name for name, module in whole.named_modules() if "_fusion" in vars(module)]


@torch.no_grad()
def test_a_network_that_changes_all_the_time_packs_only_what_changed(whole: nn.Module) -> None:
    """Not the whole each time: after each change it waits longer before it is one plan again."""
    seen = []
    for _ in range(40):
        whole.classifier[3].bias.add_(1)
        seen.append(plans(whole))
    assert seen.count(1) <= 6
    for _ in range(70):
        whole(X)
    assert plans(whole) == 1


@torch.no_grad()
def test_it_gives_bitwise_what_the_parts_give(whole: nn.Module) -> None:
    for size in ((1, 224, 224), (3, 97, 64), (2, 1, 1)):
        x = testing.parity_images(*size)
        expected = whole(x)
        mnv3_fast.refresh(whole)
        assert torch.equal(whole(x), expected)
        for _ in range(3):
            assert torch.equal(whole(x), expected)


@torch.no_grad()
def test_parts_that_do_not_fit_give_torchs_kind_of_error(whole: nn.Module) -> None:
    whole.features[5] = copy.deepcopy(whole.features[9])
    for _ in range(6):
        with pytest.raises(RuntimeError):
            whole(X)


@torch.no_grad()
def test_what_freeze_could_not_take_stays_in_parts() -> None:
    model = mnv3_fast.accelerate(copy.deepcopy(cached_parity_model("small")), inplace=True)
    model.features[5].block[0][1] = nn.GroupNorm(4, 240)
    for _ in range(4):
        assert plans(model) == 12
    explanation = mnv3_fast.explain(model, X)
    assert explanation.networks == {}
    assert "GroupNorm" in explanation.divided[""]
    assert f"the network: part by part, since {explanation.divided['']}" in str(explanation)


def _tensor_eps(model: nn.Module) -> None:
    model.features[0][1].eps = torch.tensor(1e-3)
    model(X)
    model.features[0][1].eps.fill_(5.0)


def _array_residual(model: nn.Module) -> None:
    model.features[3].use_res_connect = np.ones(1, bool)
    model(X)
    model.features[3].use_res_connect[0] = False


def _own_conv_forward(model: nn.Module) -> None:
    conv = model.features[4].block[0][0]
    conv._conv_forward = lambda x, weight, bias: nn.functional.conv2d(x, weight) * 2


def _own_scale(model: nn.Module) -> None:
    model.features[4].block[2]._scale = lambda x: torch.full((1, 1, 1, 1), 0.7)


def _hidden_weight(model: nn.Module) -> None:
    conv = model.features[4].block[0][0]
    conv.__dict__["weight"] = conv.weight.detach() * 1.5


def _no_bias_in_a_norm(model: nn.Module) -> None:
    model.features[1].block[0][1].bias = None


@torch.no_grad()
@pytest.mark.parametrize("one_plan", [False, True])
@pytest.mark.parametrize(
    "change", [_tensor_eps, _array_residual, _own_conv_forward, _own_scale, _hidden_weight, _no_bias_in_a_norm]
)
def test_odd_changes_take_effect(whole: nn.Module, change: Callable[[nn.Module], None], one_plan: bool) -> None:
    before = whole(X)
    if not one_plan:
        whole.features[2].register_forward_hook(end.look)
        whole(X)
    change(whole)
    for _ in range(4):
        after, expected = whole(X), end.stock(whole)(X)
        assert not torch.equal(after, before)
        assert testing.relative_error(after, expected) <= testing.NET_LIMIT


@torch.no_grad()
def test_a_module_that_is_in_the_plan_and_after_it_too() -> None:
    model = copy.deepcopy(cached_parity_model("small"))
    first, act, dropout, last = model.classifier
    model.classifier = nn.Sequential(first, act, dropout, last, nn.Softmax(1), act)
    fast = mnv3_fast.accelerate(model, inplace=True)
    for _ in range(4):
        fast(X)
    act.register_forward_hook(lambda m, args, output: output * 3)
    for _ in range(4):
        assert testing.relative_error(fast(X), end.stock(fast)(X)) <= testing.NET_LIMIT


@torch.no_grad()
def test_an_input_whose_memory_was_freed_is_an_error(whole: nn.Module) -> None:
    engine = mnv3_fast.freeze(cached_parity_model("small"))
    x = X.clone()
    x.untyped_storage().resize_(0)
    for run in (whole, engine, whole.features[0]):
        with pytest.raises(RuntimeError, match=r"a tensor of shape \[2, 3, 64, 64\] has no memory"):
            run(x)


@torch.no_grad()
def test_dropout_that_always_drops(whole: nn.Module) -> None:
    whole.classifier[2] = end.Always(0.5)
    for model in (whole, mnv3_fast.freeze(whole)):
        for _ in range(3):
            assert not torch.equal(model(X), model(X))


@torch.no_grad()
@pytest.mark.parametrize("net", ["large", "small"])
def test_two_models_that_differ_in_one_row(net: str) -> None:
    """Their tensors have equal versions, shapes and samples; only the addresses of larger ones tell them apart."""
    first, second = (copy.deepcopy(cached_parity_model(net)) for _ in range(2))
    second.classifier[3].weight.data[7] += 1.0
    for model in (first, second):
        fast = mnv3_fast.accelerate(model)
        for _ in range(4):
            assert testing.relative_error(fast(X), model(X)) <= testing.NET_LIMIT
        output = torch.ops.mnv3_fast.network(X, *describe_net(model).flatten())
        assert testing.relative_error(output, model(X)) <= testing.NET_LIMIT


@torch.no_grad()
@pytest.mark.parametrize("name", ["features.12.0", "classifier.0", "classifier.3"])
def test_other_memory_for_one_weight_takes_effect(whole: nn.Module, name: str) -> None:
    weight = whole.get_submodule(name).weight
    for i in range(6):  # what is freed is given out again
        other = weight.detach().clone()
        other[i, 3 + i] += 3.0
        weight.data = other
        del other
        assert testing.relative_error(whole(X), end.stock(whole)(X)) <= testing.NET_LIMIT
    for _ in range(3):
        assert testing.relative_error(whole(X), end.stock(whole)(X)) <= testing.NET_LIMIT


@torch.no_grad()
def test_old_memory_given_back_takes_effect_and_plans_do_not_pile_up() -> None:
    block = mnv3_fast.accelerate(copy.deepcopy(cached_parity_model("small").features[9]), inplace=True)
    x, weight = torch.randn(1, 48, 7, 7), block.block[0][0].weight
    block(x)
    before, kept = cache.size(), weight.data
    weight.data = kept.clone()
    block(x)
    kept[0, 1] += 3  # no sample of its values
    weight.data = kept
    assert testing.relative_error(block(x), end.stock(block)(x)) <= testing.NET_LIMIT
    others = [weight.detach().clone() for _ in range(20)]
    for other in others:
        weight.data = other
        block(x)
    assert cache.size() == before


@torch.no_grad()
def test_copies_that_share_their_tensors_share_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(cached_parity_model("small"))
    copies = [mnv3_fast.accelerate(model) for _ in range(2)]
    for _ in range(4):
        for fast in copies:
            fast(X)
    module = op_module("network")
    monkeypatch.setattr(module, "pack_stages", lambda *_: pytest.fail("packed again"))
    for _ in range(3):
        for fast in copies:
            fast(X)


@torch.no_grad()
@pytest.mark.parametrize("padding", [(0, 0), (3, 3), pytest.param((500, 500), marks=pytest.mark.slow)])
def test_a_residual_of_another_size_is_torchs_error(whole: nn.Module, padding: tuple[int, int]) -> None:
    whole.features[5].block[1][0].padding = padding
    with pytest.raises(RuntimeError, match="must match the size of tensor|Kernel size can't be greater"):
        whole(X)
    with pytest.raises(RuntimeError, match="must match the size of tensor|Kernel size can't be greater"):
        whole.features[5](torch.randn(1, 40, 2, 2).to(memory_format=torch.channels_last))


def test_an_input_that_no_memory_could_hold_is_an_error() -> None:
    engine = mnv3_fast.freeze(cached_parity_model("small"))
    for height, width in ((2**30, 2**30), (2**60, 1), (1, 2**40)):
        with torch.no_grad(), pytest.raises(RuntimeError, match="run_plan: input is too large, got"):
            engine(torch.zeros(1, 3, 1, 1).expand(1, 3, height, width))
