"""freeze: what joins the plan, what stays torch's, copies, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import mnv3_fast
from mnv3_fast import testing
from tests.models.common import cached_parity_model

X = testing.parity_images(2, 64, seed=1)


def own_head() -> nn.Module:
    return nn.Sequential(nn.Linear(576, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5))


CLASSIFIERS = {
    "stock": (None, "Identity", 1000),
    "one linear": (lambda: nn.Linear(576, 5), "Identity", 5),
    "last replaced": ("last", "Identity", 7),
    "own": (own_head, "Sequential", 64),
    "gelu": (lambda: nn.Sequential(nn.Linear(576, 32), nn.GELU(), nn.Linear(32, 3)), "Sequential", 32),
    "identity": (nn.Identity, "Identity", 576),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifiers(kind: str) -> None:
    model = copy.deepcopy(cached_parity_model("small"))
    make, rest, width = CLASSIFIERS[kind]
    if make == "last":
        model.classifier[3] = nn.Linear(1024, 7)
    elif make is not None:
        model.classifier = make().eval()
    engine = mnv3_fast.freeze(model)
    assert type(engine.rest).__name__ == rest
    assert engine.geometry[1] == width
    for x in (X, X[:1], X[:0]):
        assert engine(x).shape == model(x).shape
        assert testing.relative_error(engine(x), model(x)) <= testing.NET_LIMIT


@torch.no_grad()
def test_a_stem_whose_weight_was_replaced_alone() -> None:
    """As for gray images; Conv2d.in_channels takes no part in torch's own forward."""
    model = copy.deepcopy(cached_parity_model("small"))
    conv = model.features[0][0]
    conv.weight = nn.Parameter(conv.weight.sum(1, keepdim=True))
    gray = X[:, :1]
    assert testing.relative_error(mnv3_fast.freeze(model)(gray), model(gray)) <= testing.NET_LIMIT


@torch.no_grad()
def test_copies() -> None:
    engine = mnv3_fast.freeze(cached_parity_model("small"))
    expected = engine(X)
    state = engine.state_dict()
    for other in (copy.deepcopy(engine), pickle.load(io.BytesIO(pickle.dumps(engine)))):
        assert torch.equal(other(X), expected)
        other.load_state_dict(state)
    assert list(state) == ["plan"]


@torch.no_grad()
def test_an_engine_keeps_no_tie_to_its_model() -> None:
    model = copy.deepcopy(cached_parity_model("small"))
    engine = mnv3_fast.freeze(model)
    expected = engine(X)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(engine(X), expected)


@torch.no_grad()
def test_an_accelerated_model_freezes_alike() -> None:
    model = cached_parity_model("small")
    assert torch.equal(mnv3_fast.freeze(mnv3_fast.accelerate(model))(X), mnv3_fast.freeze(model)(X))


@torch.no_grad()
def test_bytes() -> None:
    engine = mnv3_fast.freeze(cached_parity_model("small"))
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(engine(image), engine(image.float()))


def test_bytes_that_are_not_normalised_are_said() -> None:
    model = testing.parity_model("small")
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.warns(UserWarning, match="Engine: uint8 images are taken as numbers from 0 to 255"):
        mnv3_fast.freeze(model)(images)
    normalising = mnv3_fast.freeze(model, scale=[1 / 255] * 3, shift=[0.0] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for engine in (normalising, copy.deepcopy(normalising)):
            engine(images)
            engine(images.float())


def test_an_engine_stays_in_eval_mode() -> None:
    engine = mnv3_fast.freeze(cached_parity_model("small"))
    assert not nn.Sequential(engine).train()[0].training


def test_explain() -> None:
    model = cached_parity_model("small")
    explanation = mnv3_fast.explain(mnv3_fast.freeze(model), testing.parity_images(1, 224))
    macs = sum(row.macs for row in explanation.rows)
    assert macs / 1e6 == pytest.approx(56.5, abs=0.05)
    assert len(explanation.rows) == 1 + 11 + 2 + 2
    assert "inverted residual 96->96" in str(explanation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.train(), "freeze: the model is in training mode; call model.eval() first"),
        (lambda m: m.features[3].block[0].register_forward_hook(lambda *_: None), "features.3.block.0 has a hook"),
        (lambda m: m.half(), "its weights are torch.float16 on cpu"),
        (lambda m: m.features[2].block[0][1].train(), "features.2.block.0.1 is in training mode"),
        (lambda m: setattr(m.features[1].block[0], "1", nn.GroupNorm(1, 16)), "norm GroupNorm cannot be folded"),
    ],
)
def test_refusals(change, message: str) -> None:
    model = copy.deepcopy(cached_parity_model("small"))
    change(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        mnv3_fast.freeze(model)


@torch.no_grad()
def test_what_no_plan_can_run_stays_torchs() -> None:
    model = copy.deepcopy(cached_parity_model("small"))
    model.avgpool = nn.AdaptiveMaxPool2d(1)
    frozen = mnv3_fast.freeze(model)
    assert type(frozen.features).__name__ == "Engine"
    assert testing.relative_error(frozen(X), model(X)) <= testing.NET_LIMIT


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="freeze: model must be an nn.Module, got dict"):
        mnv3_fast.freeze({})
    with pytest.raises(ValueError, match="freeze: dtype torch.bfloat16 does not exist yet"):
        mnv3_fast.freeze(cached_parity_model("small"), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="freeze: nothing in Linear can be frozen"):
        mnv3_fast.freeze(nn.Linear(2, 2).eval())
    for scale in (["a", "b", "c"], {}, [[1], [1, 2]]):
        with pytest.raises(TypeError, match="freeze: scale must be a tensor or numbers, got"):
            mnv3_fast.freeze(cached_parity_model("small"), scale=scale, shift=[0, 0, 0])


def test_a_pruned_network_is_refused_with_the_reason() -> None:
    """Pruning keeps a result of autograd as an attribute, which deepcopy refuses."""
    model = copy.deepcopy(cached_parity_model("small"))
    prune.l1_unstructured(model.features[5].block[0][0], "weight", 0.5)
    with pytest.raises(ValueError, match=r"freeze: .*features.5.block.0.0 has a hook, which an engine would not call"):
        mnv3_fast.freeze(model)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([1], TypeError, "Engine: input must be a Tensor, got list"),
        (X.double(), TypeError, "Engine: input must be float32 or uint8, got float64"),
        (X[0], ValueError, r"Engine: input must be \[N, 3, H, W\], got \[3, 64, 64\]"),
        (X[:, :1], ValueError, r"Engine: input must be \[N, 3, H, W\], got \[2, 1, 64, 64\]"),
        (X[:, :, :0], ValueError, r"Engine: input must have at least one pixel, got \[2, 3, 0, 64\]"),
        (X.to("meta"), ValueError, "Engine: input must be on cpu as the engine is, got meta"),
        (X.to_sparse(), TypeError, r"Engine: input must be a dense \(strided\) tensor, got layout torch.sparse_coo"),
        (torch.nested.nested_tensor(list(X)), TypeError, r"Engine: input must be a dense .* tensor, got a nested one"),
        (X.clone().requires_grad_(), RuntimeError, "Engine: an engine is for inference and the input requires grad"),
    ],
)
def test_bad_input(x: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mnv3_fast.freeze(cached_parity_model("small"))(x)
