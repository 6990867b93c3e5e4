"""What a fused block must not do in place of torch: nothing that a user changed, before or after, may be lost."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torchvision.models import _utils
from torchvision.models.mobilenetv3 import InvertedResidual

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import cached_parity_model, count_ops

X = testing.parity_images(2, 64, seed=1)


def front() -> nn.Module:
    """Stem and four blocks of small: with and without squeeze-excite, expansion, residual."""
    return copy.deepcopy(cached_parity_model("small").features[:5]).eval()


def agrees(accelerated: nn.Module, x: torch.Tensor = X) -> bool:
    stock = mnv3_fast.restore(copy.deepcopy(accelerated))
    return testing.relative_error(accelerated(x), stock(x)) <= testing.NET_LIMIT


def parts(block: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return block.block[0][0], block.block[0][1]


def drop_affine(block: nn.Module) -> None:
    norm = parts(block)[1]
    norm.weight = norm.bias = None


def narrow(block: nn.Module) -> None:
    """Half the outputs, by views of the same memory."""
    conv, norm = block.block[-1][0], block.block[-1][1]
    for tensor in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data = tensor.data[: tensor.shape[0] // 2]


LATER: dict[str, tuple[Callable[[nn.Module], object], bool]] = {
    "bias added": (lambda b: setattr(parts(b)[0], "bias", nn.Parameter(torch.randn(parts(b)[0].out_channels))), True),
    "affine dropped": (drop_affine, True),
    "outputs halved": (narrow, True),
    "statistics dropped": (lambda b: setattr(parts(b)[1], "running_mean", None), False),
    "class of a child": (lambda b: setattr(b.block[0][2], "__class__", nn.Tanh), False),
    "weight of a subclass": (lambda b: setattr(parts(b)[0], "weight", Marked(parts(b)[0].weight.detach())), False),
}


class Marked(nn.Parameter):
    """A stand-in for quantized and distributed tensors."""


@torch.no_grad()
@pytest.mark.parametrize("change", LATER)
def test_a_change_after_the_first_call(change: str) -> None:
    make, stays_fused = LATER[change]
    block = mnv3_fast.accelerate(front()[2:3], inplace=True)
    x = torch.randn(1, 16, 12, 12)
    block(x)
    make(block[0])
    if change == "statistics dropped":
        with pytest.raises((RuntimeError, TypeError)):  # torch's own error
            block(x)
    else:
        assert agrees(block, x)
        assert block(x).shape == mnv3_fast.restore(copy.deepcopy(block))(x).shape
    assert (mnv3_fast.explain(block).fused == 1) is stays_fused


@torch.no_grad()
@pytest.mark.parametrize(("name", "value"), [("min_val", 0.1), ("max_val", 0.5)])
def test_limits_of_relu6_are_its_attributes(name: str, value: float) -> None:
    """It is a Hardtanh, which computes by them."""
    model = front()
    model[2].block[0][2] = nn.ReLU6()
    block = mnv3_fast.accelerate(model, inplace=True)
    before = block(X)
    setattr(block[2].block[0][2], name, value)
    assert agrees(block)
    assert testing.relative_error(block(X), before) > 1e-2
    with pytest.raises(ValueError, match=r"ReLU6 from .* to .* has no kernel"):
        mnv3_fast.freeze(block[2:3].eval())


COMPILED: dict[str, Callable[[nn.Module], object]] = {
    "hook": lambda b: parts(b)[0].register_forward_hook(lambda m, args, output: output * 2),
    "norm": lambda b: b.block[0].__setitem__(1, nn.GroupNorm(4, parts(b)[1].num_features)),
    "training norm": lambda b: parts(b)[1].train(),
    "forward": lambda b: setattr(parts(b)[0], "forward", lambda x: nn.functional.conv2d(x, parts(b)[0].weight) * 2),
}


@torch.no_grad()
@pytest.mark.parametrize("change", COMPILED)
def test_compiled_graphs_lose_nothing_either(change: str) -> None:
    model = mnv3_fast.accelerate(front(), inplace=True)
    COMPILED[change](model[3])
    stock = mnv3_fast.restore(copy.deepcopy(model))
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=keep, fullgraph=True)
    assert testing.relative_error(compiled(X), stock(X)) <= testing.NET_LIMIT
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    assert targets.count("mnv3_fast.inverted_residual") + targets.count("mnv3_fast.inverted_residual.default") == 3


def test_compiled_with_gradients() -> None:
    model = front()
    grads = []
    for m in (model, torch.compile(mnv3_fast.accelerate(model), backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        torch._dynamo.reset()
        m(X).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert testing.relative_error(b, a) <= 1e-4


def test_traced_with_gradients_on_can_be_saved(tmp_path) -> None:
    model = front()
    traced = torch.jit.trace(mnv3_fast.accelerate(model), X)
    torch.jit.save(traced, tmp_path / "traced.pt")
    loaded = torch.jit.load(tmp_path / "traced.pt")
    assert testing.relative_error(loaded(X), model(X)) <= testing.NET_LIMIT


@pytest.mark.parametrize("frozen", [False, True])
def test_forward_mode(frozen: bool) -> None:
    model = front().requires_grad_(not frozen)
    tangents = []
    for m in (model, mnv3_fast.accelerate(model)):
        with forward_ad.dual_level():
            output = m(forward_ad.make_dual(X, torch.ones_like(X)))
            tangents.append(forward_ad.unpack_dual(output).tangent.detach())
    assert testing.relative_error(tangents[1], tangents[0]) <= testing.NET_LIMIT


def test_gradient_of_a_gradient() -> None:
    """Without squeeze-excite: torch has no second derivative of hardsigmoid."""
    model = front()[2:4]
    x = torch.randn(1, 16, 12, 12)
    second = []
    for m in (model, mnv3_fast.accelerate(model)):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(m(leaf).square().sum(), leaf, create_graph=True)
        first.square().sum().backward()
        second.append(leaf.grad)
    assert testing.relative_error(second[1], second[0]) <= 1e-4


class Doubled(InvertedResidual):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


@torch.no_grad()
@pytest.mark.parametrize("kind", ["subclass", "pool", "order"])
def test_what_is_not_torchvisions_is_not_taken_for_it(kind: str) -> None:
    model = front()
    if kind == "subclass":
        model[3].__class__ = Doubled
    elif kind == "pool":
        model[4].block[2].avgpool = nn.AdaptiveMaxPool2d(1)
    else:  # squeeze-excite behind the projection
        squeeze = copy.deepcopy(cached_parity_model("small").features[1].block[1])
        model[3].use_res_connect = False
        model[3].block[2][0] = nn.Conv2d(88, 16, 1)
        model[3].block[2][1] = nn.Identity()
        model[3].block.append(squeeze)
        model[4].block[0][0] = nn.Conv2d(16, 96, 1)
    accelerated = mnv3_fast.accelerate(model)
    assert testing.relative_error(accelerated(X), model(X)) <= testing.NET_LIMIT
    assert (
        count_ops(lambda: accelerated(X))["mnv3_fast::run_plan"] == 6
    )  # stem, three blocks, and the 1x1 convolutions of the fourth
    with pytest.raises(ValueError, match="freeze: nothing in Sequential can be frozen"):
        mnv3_fast.freeze(model)


@torch.no_grad()
def test_arguments_by_name() -> None:
    x = torch.randn(1, 16, 12, 12)
    block = mnv3_fast.accelerate(front(), inplace=True)[2]
    assert torch.equal(block(input=x), block(x))


@torch.no_grad()
def test_containers_keep_the_memory_format() -> None:
    """Also inside of a Sequential of something else, and in torchvision's backbones of detectors and segmenters."""
    outer = mnv3_fast.accelerate(
        nn.Sequential(nn.Identity(), copy.deepcopy(cached_parity_model("small"))), inplace=True
    )
    assert outer[1].features(X).is_contiguous()
    last_channels = X.contiguous(memory_format=torch.channels_last)
    assert outer[1].features(last_channels).is_contiguous(memory_format=torch.channels_last)
    getter = _utils.IntermediateLayerGetter(front(), {"1": "low", "4": "high"})
    for x in (X, last_channels):
        for (name, ours), theirs in zip(mnv3_fast.accelerate(getter)(x).items(), getter(x).values(), strict=True):
            assert ours.stride() == theirs.stride(), name
            assert testing.relative_error(ours, theirs) <= testing.NET_LIMIT
    assert mnv3_fast.restore(mnv3_fast.accelerate(getter)).__class__ is _utils.IntermediateLayerGetter


@torch.no_grad()
def test_timm_features_keep_the_memory_format() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050", features_only=True).eval()
    for x in (X, X.contiguous(memory_format=torch.channels_last)):
        for ours, theirs in zip(mnv3_fast.accelerate(model)(x), model(x), strict=True):
            assert ours.stride() == theirs.stride()
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * theirs.abs().max().item())
