"""Every op's kernels as they are compiled for sm_80: results, every byte written once, no races, accesses, traffic."""

from __future__ import annotations

import dataclasses

import pytest

from mnv3_fast.testing.layers import RealLayer, real_layers
from tests.gpu.operators import OPERATORS
from tests.gpu.plant import NothingToDamage
from tests.gpu.requests import Request
from tests.gpu.verdict import Verdict, judge, plant_and_judge

DTYPES = ("fp16", "bf16", "fp32")
BATCHES = {"squeeze_excite_gate": 17}
"""More images than a program takes, where programs take images."""


def of_layer(layer: RealLayer, side: int) -> Request:
    """A layer of a network on a map of at most ``side`` pixels a side."""
    op = layer.op
    return Request(
        op,
        BATCHES.get(op, 2),
        layer.inputs,
        min(layer.height, side),
        min(layer.width, side + 2),
        out=layer.outputs if op in ("pointwise_conv", "stem_conv") else None,
        squeeze=layer.squeeze or None,
        kernel=layer.kernel if op in ("depthwise_conv", "stem_conv") else 3,
        stride=layer.stride,
        activation="relu" if op.startswith("squeeze") else layer.activation,
        gate=layer.gated,
        residual=layer.residual,
        mean=op == "depthwise_conv",
    )


def real_requests() -> list[Request]:
    """What both networks consist of; layers that differ in nothing but their map's size once."""
    found: dict[Request, None] = {}
    for net in ("large", "small"):
        for layer in real_layers(net):
            if layer.op in OPERATORS and layer.op != "squeeze_excite":
                side = 4 if layer.inputs * layer.outputs > 40_000 and layer.op == "pointwise_conv" else 9
                found[of_layer(layer, side)] = None
    return list(found)


def _depthwise_edges() -> list[Request]:
    op = "depthwise_conv"
    return [
        *[Request(op, 2, c, 5, 6, kernel=3, activation="relu", mean=True) for c in (1, 7, 8, 9, 24, 72)],
        *[Request(op, 1, 24, h, w, kernel=5, stride=2, mean=True) for h, w in ((1, 1), (7, 15), (8, 2))],
        *[Request(op, 1, 9, 1, 1, kernel=k, activation="hardswish") for k in (1, 3, 5, 7)],
        Request(op, 3, 16, 9, 11, kernel=3, dilation=2, mean=True),
        Request(op, 1, 8, 14, 9, kernel=5, stride=3, padding=1),
        Request(op, 1, 8, 9, 9, kernel=3, stride=2, dilation=3, padding=4),
        Request(op, 1, 24, 10, 10, kernel=7, padding=0),
        Request(op, 1, 8, 3, 40, kernel=3, padding=2),
    ]


def _pointwise_edges() -> list[Request]:
    op = "pointwise_conv"
    return [
        *[Request(op, 2, c, 3, 5, out=o, activation="relu") for c, o in ((1, 1), (7, 9), (8, 8), (9, 24), (72, 7))],
        Request(op, 3, 24, 7, 7, out=72, gate=True, residual=True, activation="hardswish"),
        Request(op, 5, 9, 1, 1, out=8, gate=True),
        Request(op, 1, 72, 13, 11, out=40, residual=True),
        Request(op, 130, 8, 1, 1, out=33),
    ]


def _squeeze_edges() -> list[Request]:
    op, whole = "squeeze_excite_gate", "squeeze_excite"
    return [
        *[Request(op, 1, c, 1, 1, squeeze=s) for c, s in ((1, 1), (9, 7), (24, 8))],
        Request(op, 33, 72, 9, 2, squeeze=24, activation="hardswish"),
        *[Request(whole, 2, c, h, w, squeeze=8) for c, h, w in ((8, 3, 3), (9, 1, 1), (72, 24, 25))],
    ]


def _stem_edges() -> list[Request]:
    op = "stem_conv"
    return [
        Request(op, 2, 3, 15, 17, out=16, stride=2, bytes=True, activation="hardswish"),
        Request(op, 2, 3, 15, 17, out=16, stride=2, bytes=True, layout="contiguous"),
        Request(op, 2, 3, 16, 9, out=16, stride=2, layout="contiguous", activation="hardswish"),
        Request(op, 1, 1, 5, 5, out=7, kernel=5, stride=1),
        Request(op, 1, 4, 12, 9, out=40, kernel=3, stride=3, dilation=2),
        Request(op, 1, 3, 1, 1, out=9, stride=2),
    ]


REAL = real_requests()
EDGES = [*_depthwise_edges(), *_pointwise_edges(), *_squeeze_edges(), *_stem_edges()]


def assert_right(verdict: Verdict) -> None:
    """Nothing is wrong, and no more is asked for than a cache can serve."""
    assert verdict.faults == []
    assert verdict.error
    assert verdict.unique > 0 and verdict.requested >= verdict.unique


def bytes_of(request: Request) -> tuple[int, int]:
    """The bytes of the input and the output maps."""
    size = 4 if request.dtype == "fp32" else 2
    height, width = request.out_size if request.op in ("depthwise_conv", "stem_conv") else (request.h, request.w)
    outs = request.out or request.c
    return size * request.n * request.c * request.h * request.w, size * request.n * outs * height * width


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("request_", REAL, ids=str)
def test_layers_of_both_networks(request_: Request, dtype: str) -> None:
    request_ = dataclasses.replace(request_, dtype=dtype)
    verdict = judge(request_)
    assert_right(verdict)
    tensors = verdict.traffic[0]["bytes"]
    if request_.op in ("depthwise_conv", "pointwise_conv"):
        read, written = bytes_of(request_)
        output = next(traffic for name, traffic in tensors.items() if "output" in name.split("/"))
        assert output["written"] == written
        assert tensors["input"]["unique"] == read
        # Channels are multiples of 8: maps are read and written in 128 bits.
        assert tensors["input"]["narrowest_load"] == 16
        assert output["narrowest_store"] == 16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("request_", EDGES, ids=str)
def test_edges(request_: Request, dtype: str) -> None:
    assert_right(judge(dataclasses.replace(request_, dtype=dtype)))


PLANTED = {
    "depthwise_conv": (Request("depthwise_conv", 1, 24, 9, 9, kernel=3, mean=True), ("barrier", "bound")),
    "pointwise_conv": (Request("pointwise_conv", 2, 72, 5, 7, out=40, gate=True), ("barrier", "bound", "mma")),
    "squeeze_excite_gate": (Request("squeeze_excite_gate", 3, 72, 3, 3, squeeze=24), ("barrier", "bound", "mma")),
    "squeeze_excite": (Request("squeeze_excite", 2, 72, 5, 5, squeeze=24), ("barrier", "bound", "mma")),
    "stem_conv": (Request("stem_conv", 1, 3, 15, 15, out=16, stride=2), ("barrier", "bound", "mma")),
    "inverted_residual": (Request("inverted_residual", 1, 16, 7, 5, hidden=40, squeeze=8), ("barrier", "bound", "mma")),
}


@pytest.mark.parametrize("op", list(OPERATORS))
@pytest.mark.parametrize("fault", ["barrier", "bound", "mma"])
def test_planted_faults_are_found(op: str, fault: str) -> None:
    request, possible = PLANTED[op]
    if fault not in possible:
        with pytest.raises(NothingToDamage):
            plant_and_judge(request, fault)
        return
    words = {"barrier": "race", "bound": "", "mma": "error"}[fault]
    assert any(words in found for found in plant_and_judge(request, fault).faults)
