"""Networks with TensorFlow's padding: timm's tf_mobilenetv3_*, and torchvision's with our Conv2dSame, on kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mnv3_fast
from mnv3_fast import testing
from mnv3_fast.engine.layer_times import layers_of
from mnv3_fast.nn import Conv2dSame
from tests.models.common import WAYS

MODELS = [f"tf_mobilenetv3_{name}" for name in ("small_075", "large_minimal_100")]
OTHERS = [f"tf_mobilenetv3_{name}" for name in ("small_100", "small_minimal_100", "large_075", "large_100")]
SIZES = [(64, 64), (65, 65), (96, 75)]


def timm_model(name: str) -> nn.Module:
    timm = pytest.importorskip("timm")
    return testing.parity_model(lambda: timm.create_model(name), seed=1, size=64)


def replace_convs(model: nn.Module, change: Callable[[nn.Conv2d], nn.Conv2d | None]) -> nn.Module:
    """A copy with other convolutions in the places of those that ``change`` gives one for; the weights are shared."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, conv in list(parent.named_children()):
            other = change(conv) if isinstance(conv, nn.Conv2d) else None
            if other is not None:
                other.weight, other.bias = conv.weight, conv.bias
                setattr(parent, name, other)
    return model


def symmetric(conv: nn.Conv2d) -> nn.Conv2d | None:
    """As much padding in front as behind, whatever the size."""
    if type(conv).__name__ != "Conv2dSame":
        return None
    arguments = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride
    return nn.Conv2d(*arguments, tuple(side // 2 for side in conv.kernel_size), groups=conv.groups, bias=False)


def as_tensorflow(conv: nn.Conv2d) -> nn.Conv2d | None:
    """Ours, for all that have a window."""
    if conv.kernel_size == (1, 1):
        return None
    arguments = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.dilation
    return Conv2dSame(*arguments, groups=conv.groups, bias=conv.bias is not None)


@pytest.fixture(scope="module")
def ours() -> nn.Module:
    """torchvision's small network with our convolutions."""
    return testing.parity_model(lambda: replace_convs(mnv3_fast.mobilenet_v3_small(), as_tensorflow), seed=2, size=64)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_timms_networks(name: str, instruction_set: str) -> None:
    model = timm_model(name)
    for way, convert in WAYS.items():
        converted = convert(model)
        for size in SIZES:
            x = testing.parity_images(2, *size, seed=6)
            for _ in range(3 if way == "accelerated" else 1):  # block by block, then as one plan
                testing.assert_net_equal(converted(x), model(x), way)


@pytest.mark.parametrize("name", MODELS + OTHERS)
def test_all_of_it_runs_on_kernels(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name).eval()
    explanation = mnv3_fast.explain(mnv3_fast.accelerate(model))
    assert not explanation.fallbacks
    assert explanation.fused == 1 + sum(len(stage) for stage in model.blocks)
    engine = mnv3_fast.freeze(model)
    assert isinstance(engine, mnv3_fast.Engine)
    assert type(engine.rest) is nn.Identity
    assert not mnv3_fast.explain(engine).fallbacks


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_symmetric_padding_shows_at_even_sizes_only(name: str) -> None:
    """Of 32 k + 1 every map on the way is odd, and both ways to pad are one."""
    model = timm_model(name)
    wrong = mnv3_fast.freeze(replace_convs(model, symmetric))
    for size, differs in ((64, True), (96, True), (65, False), (225, False)):
        x = testing.parity_images(1, size, seed=6)
        assert (testing.relative_error(wrong(x), model(x)) > 100 * testing.NET_LIMIT) is differs


@torch.no_grad()
def test_torchvisions_network_with_our_convolutions(ours: nn.Module, instruction_set: str) -> None:
    for way, convert in WAYS.items():
        converted = convert(ours)
        for size in SIZES:
            x = testing.parity_images(2, *size, seed=6).contiguous(memory_format=torch.channels_last)
            testing.assert_net_equal(converted(x), ours(x), way)
    explanation = mnv3_fast.explain(mnv3_fast.accelerate(ours))
    assert explanation.fused == 14 and not explanation.fallbacks
    assert explanation.rows[0].kernel == "stem_conv"


def test_work_is_that_of_the_map_that_comes_out(ours: nn.Module) -> None:
    """Which both ways to pad give the same size."""
    stock = testing.parity_model("small", size=64)
    for size in (64, 66, 67):
        work = [layers_of(mnv3_fast.freeze(model).plan, (1, 3, size, size)) for model in (ours, stock)]
        assert work[0] == work[1]
    accelerated = mnv3_fast.explain(mnv3_fast.accelerate(ours), testing.parity_images(1, size)).rows
    assert sum(row.macs for row in accelerated) == sum(layer.macs for layer in work[0])


def test_gradients_in_eval_mode(ours: nn.Module) -> None:
    x = testing.parity_images(2, 64, seed=6)
    found = []
    for model in (ours, mnv3_fast.accelerate(ours), copy.deepcopy(ours).double()):
        image = x.to(next(model.parameters()).dtype, copy=True).requires_grad_()
        model(image).square().mean().backward()
        found.append((image.grad, model.features[1].block[0][0].weight.grad.clone()))
        model.zero_grad()
    for theirs, mine, exact in zip(*found, strict=True):
        testing.assert_close_enough(mine, theirs, exact, gradient=True)


@torch.no_grad()
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_graphs_of_any_size(whole: bool, ours: nn.Module) -> None:
    stock = ours if whole else ours.features[:2]
    model = mnv3_fast.accelerate(stock)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(
        model, (testing.parity_images(2, 64, 70),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
    ).module()
    for shape in ((2, 64, 70), (3, 65, 75), (2, 75, 64), (2, 225, 33)):
        x = testing.parity_images(*shape, seed=6)
        expected = stock(x)
        for graph in (compiled, exported):
            testing.assert_net_equal(graph(x), expected)


def _subclass(conv: nn.Conv2d) -> None:
    class Conv2dSame(type(conv)):
        def forward(self, input: Tensor) -> Tensor:
            return 0.9 * super().forward(input)

    conv.__class__ = Conv2dSame


CHANGES: dict[str, Callable[[nn.Conv2d], object]] = {
    "a subclass of its own": _subclass,
    "padding besides": lambda conv: setattr(conv, "padding", (1, 1)),
    "another mode": lambda conv: setattr(conv, "padding_mode", "circular"),
    "a plain convolution": lambda conv: (setattr(conv, "__class__", nn.Conv2d), setattr(conv, "padding", (1, 1))),
    "another stride": lambda conv: setattr(conv, "stride", (1, 1)),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("library", ["ours", "timm"])
def test_a_change_takes_effect(library: str, change: str, ours: nn.Module) -> None:
    stock = timm_model(MODELS[0]) if library == "timm" else ours
    model, x = mnv3_fast.accelerate(copy.deepcopy(stock), inplace=True), testing.parity_images(2, 64, seed=6)
    for _ in range(3):
        before = model(x)
    conv = model.conv_stem if library == "timm" else model.features[0][0]
    CHANGES[change](conv)
    expected = mnv3_fast.restore(copy.deepcopy(model))(x)
    inert = library == "timm" and change in ("padding besides", "another mode")  # which timm's does not look at
    assert torch.equal(expected, stock(x)) is inert
    for _ in range(3):
        assert testing.relative_error(model(x), expected) <= testing.NET_LIMIT
    assert torch.equal(model(x), before) is False or inert
    stays = change in ("a plain convolution", "another stride")
    assert (model(x).shape == before.shape) and (not mnv3_fast.explain(model).fallbacks) is stays
