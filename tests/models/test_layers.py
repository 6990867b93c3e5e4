"""The layers of TensorFlow's and Paddle's graphs, by themselves, on torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mnv3_fast.nn import Conv2dSame, DownscaleDropout, Hardsigmoid
from mnv3_fast.ops.elements import same_padding

WINDOWS = [(3, 2, 1), (5, 2, 1), (5, 1, 2), (3, 3, 1), (3, 2, 2), (2, 1, 1), (1, 2, 1), (1, 3, 1), ((3, 5), (1, 2), 1)]
SIZES = [(1, 1), (2, 3), (8, 8), (9, 6), (7, 12)]


def test_padding_as_tensorflow_documents_it() -> None:
    """The second: width 13, filter 6, stride 5 is the example of tf.nn's notes on padding."""
    cases = {
        (224, 3, 2): (0, 1),
        (13, 6, 5): (1, 2),
        (225, 3, 2): (1, 1),
        (112, 5, 2): (1, 2),
        (113, 5, 2): (2, 2),
        (14, 5, 1): (2, 2),
        (1, 5, 2): (2, 2),
        (6, 1, 3): (0, 0),
        (4, 2, 3): (0, 1),
    }
    assert {case: same_padding(*case, 1) for case in cases} == cases
    assert same_padding(10, 3, 2, 2) == (1, 2)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@torch.no_grad()
def test_conv_equals_timms(window: tuple) -> None:
    layers = pytest.importorskip("timm.layers")
    kernel, stride, dilation = window
    torch.manual_seed(0)
    ours = Conv2dSame(4, 8, kernel, stride, dilation, groups=2)
    theirs = layers.Conv2dSame(4, 8, kernel, stride, dilation=dilation, groups=2)
    theirs.load_state_dict(ours.state_dict())
    for size in SIZES:
        x = torch.randn(2, 4, *size)
        assert torch.equal(ours(x), theirs(x))
        assert torch.equal(ours(x[0]), theirs(x[0]))
        assert ours(x).shape[2:] == (-(-size[0] // ours.stride[0]), -(-size[1] // ours.stride[1]))


def test_conv_in_graphs_of_any_size() -> None:
    torch.manual_seed(0)
    conv = Conv2dSame(3, 4, 3, 2)
    torch._dynamo.reset()
    graph = torch.compile(conv, dynamic=True, backend="eager", fullgraph=True)
    h, w = torch.export.Dim("h", min=3, max=300), torch.export.Dim("w", min=3, max=300)
    exported = torch.export.export(conv, (torch.randn(2, 3, 10, 12),), dynamic_shapes=({2: h, 3: w},)).module()
    for size in ((9, 9), (8, 9), (15, 14), (16, 16)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(graph(x), conv(x))
        assert torch.equal(exported(x), conv(x))


def test_conv_keeps_what_a_conv_has() -> None:
    conv = Conv2dSame(3, 4, 3, 2, bias=False)
    assert [*conv.state_dict()] == ["weight"]
    assert repr(conv) == "Conv2dSame(3, 4, kernel_size=(3, 3), stride=(2, 2), bias=False, padding=same)"
    x = torch.randn(1, 3, 6, 5, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None and conv.weight.grad is not None


def test_gate_has_its_slope() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    expected = torch.tensor([min(max(0.2 * value + 0.5, 0.0), 1.0) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(Hardsigmoid(0.2)(x), expected)
    torch.testing.assert_close(Hardsigmoid()(x), torch.nn.functional.hardsigmoid(x))
    assert repr(Hardsigmoid(0.2)) == "Hardsigmoid(slope=0.2)"
    for slope in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"Hardsigmoid: slope must be positive, got {slope}"):
            Hardsigmoid(slope)


def test_dropout_scales_at_inference_only() -> None:
    torch.manual_seed(0)
    dropout, x = DownscaleDropout(0.25), torch.rand(1000, 20, requires_grad=True) + 1
    kept: Tensor = dropout(x)
    dropped = kept == 0
    assert torch.equal(kept[~dropped], x[~dropped])
    assert abs(dropped.float().mean().item() - 0.25) < 0.02
    kept.sum().backward()
    assert torch.equal(dropout.eval()(x), x * 0.75)
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"DownscaleDropout: p must be from 0 to 1, got {p}"):
            DownscaleDropout(p)
