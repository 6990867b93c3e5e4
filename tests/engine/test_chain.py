"""EngineChain and slices of plans: several outputs of one network, and the same bits as from the whole."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torchvision.models._utils import IntermediateLayerGetter

import mnv3_fast
from mnv3_fast import Engine, EngineChain, testing
from mnv3_fast.engine.op import OP
from mnv3_fast.engine.slicing import slice_plan
from tests.models.common import cached_parity_model

X = testing.parity_images(3, 64, 75, seed=1)
LAYERS = {"3": "low", "8": "middle", "12": "high"}


def getter() -> IntermediateLayerGetter:
    return IntermediateLayerGetter(cached_parity_model("small", size=64).features, LAYERS).eval()


def chain() -> EngineChain:
    frozen = mnv3_fast.freeze(getter())
    assert isinstance(frozen, EngineChain)
    return frozen


@torch.no_grad()
def test_outputs_have_the_bits_of_a_single_engine() -> None:
    found = chain()(X)
    features = cached_parity_model("small", size=64).features
    for index, name in LAYERS.items():
        assert torch.equal(found[name], mnv3_fast.freeze(features[: int(index) + 1].eval())(X)), name


@torch.no_grad()
def test_copies() -> None:
    frozen = chain()
    expected = frozen(X)
    for other in (copy.deepcopy(frozen), pickle.load(io.BytesIO(pickle.dumps(frozen)))):
        assert all(torch.equal(other(X)[name], expected[name]) for name in expected)
    assert list(frozen.state_dict()) == [f"parts.{i}.plan" for i in range(3)]
    assert not frozen.train().training


@torch.no_grad()
def test_captured() -> None:
    frozen = chain()
    expected = frozen(X)
    compiled = torch.compile(frozen, fullgraph=True)(X)
    program = torch.export.export(frozen, (X,), dynamic_shapes={"input": {0: torch.export.Dim("batch", max=64)}})
    exported = program.module()(X[:2])
    for name in LAYERS.values():
        assert torch.equal(compiled[name], expected[name])
        assert torch.equal(exported[name], expected[name][:2])
    assert sum("run_plan" in str(node.target) for node in program.graph.nodes) == 3


@torch.no_grad()
def test_bytes_are_normalised_as_they_are_loaded() -> None:
    images = (testing.parity_images(2, 64, seed=5) * 40 + 128).clamp(0, 255).byte()
    scale, shift = torch.tensor([0.02, 0.03, 0.01]), torch.tensor([-1.0, 0.5, 0.2])
    found = mnv3_fast.freeze(getter(), scale=scale, shift=shift)(images)
    expected = getter()(images * scale.view(3, 1, 1) + shift.view(3, 1, 1))
    for name in expected:
        assert testing.relative_error(found[name], expected[name]) <= testing.NET_LIMIT


@torch.no_grad()
def test_memory_format_is_the_inputs() -> None:
    frozen = chain()
    for x in (X, X.contiguous(memory_format=torch.channels_last), X[:0]):
        for value in frozen(x).values():
            wanted = torch.contiguous_format if x.is_contiguous() else torch.channels_last
            assert value.is_contiguous(memory_format=wanted)


def test_bad_input() -> None:
    frozen = chain()
    with pytest.raises(ValueError, match=r"Engine: input must be \[N, 3, H, W\], got \[1, 4, 8, 8\]"):
        frozen(torch.zeros(1, 4, 8, 8))
    with pytest.raises(RuntimeError, match="for inference and the input requires grad"):
        frozen(X.clone().requires_grad_())
    with pytest.warns(UserWarning, match="uint8 images are taken as numbers"):
        frozen(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 5, 12, 13, 14])
def test_slices_of_a_plan(cut: int) -> None:
    """small: stem, 11 blocks, tail, pool, two linear layers."""
    engine = mnv3_fast.freeze(cached_parity_model("small", size=64))
    assert isinstance(engine, Engine)
    first, geometry = slice_plan(engine.plan, engine.geometry, 0, cut)
    assert geometry[0] == int(cut < 14) and len(geometry) == 2 + 10 * min(cut, 12)
    middle = OP(X, first, geometry)
    if cut == 13:  # a map that is to be pooled
        middle, cut = middle.mean((2, 3)), 14
    middle = middle[:, :, None, None] if cut == 14 else middle
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan, geometry = slice_plan(engine.plan, engine.geometry, cut, 16)
        output = OP(middle, plan, geometry)
    assert geometry[0] == int(cut == 14) and geometry[1] == 1000
    if len(engine.geometry) - 2 and cut != 14:
        assert torch.equal(output, engine(X))
    assert testing.relative_error(output.flatten(1), engine(X)) <= 1e-6


def test_slices_that_are_none() -> None:
    engine = mnv3_fast.freeze(cached_parity_model("small", size=64))
    for first, last in ((3, 3), (-1, 2), (0, 17)):
        with pytest.raises(ValueError, match=rf"slice_plan: the plan has stages 0 to 15, got \[{first}, {last}\)"):
            slice_plan(engine.plan, engine.geometry, first, last)
    with pytest.raises(ValueError, match="cannot start with a pool"):
        slice_plan(engine.plan, engine.geometry, 13, 16)
