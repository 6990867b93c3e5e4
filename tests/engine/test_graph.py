"""Graphs of create_feature_extractor: their front becomes engines wherever the outputs lie."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

import mnv3_fast
from mnv3_fast import EngineChain, testing
from mnv3_fast.models.checks import Unsupported
from mnv3_fast.testing.faults import FAULTS
from tests.models.common import WAYS, cached_parity_model

X = testing.parity_images(2, 64, 75, seed=1)
CASES: dict[str, tuple[list[str], int, bool]] = {
    # what is asked for, the number of engines, whether torch has anything left to do
    "pyramid": (["features.1", "features.3", "features.8", "features.12"], 4, False),
    "residual": (["features.8.add", "features.9"], 2, False),
    "inside of a block": (["features.4.block.0", "features.9"], 2, False),
    "behind a depthwise convolution": (["features.4.block.1", "features.9"], 1, True),
    "gated": (["features.4.block.2", "features.9"], 1, True),
    "pooled": (["features.6", "flatten"], 2, False),
    "map and pooled": (["features.12", "flatten"], 1, True),
    "logits": (["features.4", "classifier.3"], 2, True),
    "pool alone": (["avgpool"], 1, True),
}


def extractor(case: str) -> nn.Module:
    return create_feature_extractor(cached_parity_model("small", size=64), CASES[case][0]).eval()


def torch_modules(module: nn.Module) -> list[nn.Module]:
    engines = [inside for chain in module.modules() if isinstance(chain, EngineChain) for inside in chain.modules()]
    layers = (nn.Conv2d, nn.Linear, nn.AdaptiveAvgPool2d)
    return [m for m in module.modules() if isinstance(m, layers) and not any(m is inside for inside in engines)]


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_outputs(case: str, way: str) -> None:
    stock = extractor(case)
    fast = WAYS[way](stock)
    for x in (X, X.contiguous(memory_format=torch.channels_last), X[:1]):
        expected, found = stock(x), fast(x)
        assert list(found) == list(expected)
        for name, value in found.items():
            assert testing.relative_error(value, expected[name]) <= testing.NET_LIMIT, name
    if way == "frozen":
        chains = [module for module in fast.modules() if isinstance(module, EngineChain)]
        assert [len(chain.parts) for chain in chains] == [CASES[case][1]]
        assert bool(torch_modules(fast)) == CASES[case][2]


@torch.no_grad()
def test_copies_and_the_original_stays() -> None:
    stock = extractor("logits")
    before = {name: value.clone() for name, value in stock.state_dict().items()}
    frozen = mnv3_fast.freeze(stock)
    expected = frozen(X)
    assert all(torch.equal(value, before[name]) for name, value in stock.state_dict().items())
    assert not any(isinstance(module, EngineChain) for module in stock.modules())
    for other in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert all(torch.equal(other(X)[name], expected[name]) for name in expected)


@torch.no_grad()
def test_copies_are_in_the_mode_of_the_original() -> None:
    """torch's own copies of such a graph are in training mode, whose BatchNorm looks at the batch."""
    stock = extractor("pyramid")
    stock.get_submodule("features.7").train()
    assert copy.deepcopy(stock).training, "torch has mended it: copy_model has nothing to do"
    fast = mnv3_fast.accelerate(stock)
    modes = {name: module.training for name, module in stock.named_modules()}
    assert {name: module.training for name, module in fast.named_modules()} == modes
    assert not fast.training
    assert mnv3_fast.accelerate(stock.train()).training


@torch.no_grad()
def test_inside_of_another_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = extractor("pyramid")
            self.head = nn.Conv2d(576, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.backbone(x)["features.12"])

    model = Two().eval()
    frozen = mnv3_fast.freeze(model)
    assert isinstance(frozen.backbone.engines, EngineChain)
    assert testing.relative_error(frozen(X), model(X)) <= testing.NET_LIMIT
    assert mnv3_fast.explain(frozen, X).fused == 13


@torch.no_grad()
def test_a_planted_fault_shows() -> None:
    broken = FAULTS["lost depthwise tap"](cached_parity_model("small", size=64))
    assert isinstance(broken, nn.Module)
    names = CASES["pyramid"][0]
    found = mnv3_fast.freeze(create_feature_extractor(broken, names).eval())(X)
    expected = extractor("pyramid")(X)
    assert testing.relative_error(found["features.12"], expected["features.12"]) > testing.NET_LIMIT
    assert torch.equal(found["features.1"], mnv3_fast.freeze(extractor("pyramid"))(X)["features.1"])


def test_graphs_that_are_no_mobilenet() -> None:
    from mnv3_fast.engine.graph import read_graph

    two_inputs = torch.fx.symbolic_trace(TwoInputs())
    with pytest.raises(Unsupported, match="a graph of 2 inputs is no known MobileNetV3"):
        read_graph(two_inputs)
    with pytest.raises(ValueError, match="nothing in Module can be frozen|nothing in .* can be frozen"):
        mnv3_fast.freeze(torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).eval())


class Writes(nn.Module):
    """A network in two halves, with something between them."""

    def __init__(self, place: str) -> None:
        super().__init__()
        features = cached_parity_model("small", size=64).features
        self.front, self.back = features[:4], features[4:]
        self.place, self.act = place, nn.Hardtanh(-0.1, 0.1, inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.place == "input":
            x.mul_(2.0)
        if self.place == "a view of the input":
            x[:, :1].zero_()
        y = self.front(x)
        if self.place == "between":
            self.act(y)
        if self.place == "function":
            nn.functional.relu(y, True)
        if self.place == "the only reader":
            y += 1.0
            return self.back(y), x
        z = self.back(y)
        if self.place == "behind":
            y.mul_(2.0)
        return z, y


def traced(model: nn.Module) -> fx.GraphModule:
    tracer = NodePathTracer(leaf_modules=[Conv2dNormActivation, SqueezeExcitation])
    return fx.GraphModule(model, tracer.trace(model)).eval()


@pytest.mark.parametrize("place", ["input", "a view of the input", "between", "function", "behind"])
def test_a_write_that_others_should_see_keeps_the_graph_torchs(place: str) -> None:
    """What was written in place is no value of the graph: an engine would read the map without it."""
    with pytest.raises(ValueError, match="writes in place to a map that others read"):
        mnv3_fast.freeze(traced(Writes(place).eval()))


@torch.no_grad()
@pytest.mark.parametrize(("place", "engines"), [("nowhere", 2), ("the only reader", 1)])
def test_a_write_that_nobody_else_sees(place: str, engines: int) -> None:
    model = Writes(place).eval()
    frozen = mnv3_fast.freeze(traced(model))
    assert sum(isinstance(module, mnv3_fast.Engine) for module in frozen.modules()) == engines
    for came, wanted in zip(frozen(X), model(X), strict=True):
        assert testing.relative_error(came, wanted) <= testing.NET_LIMIT


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@torch.no_grad()
def test_a_hook_keeps_the_graph_torchs() -> None:
    stock = copy.deepcopy(extractor("pyramid")).eval()  # torch copies graphs in training mode
    stock.get_submodule("features.4.block.0").register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"features.4.block.0 has a hook, which an engine would not call"):
        mnv3_fast.freeze(stock)
