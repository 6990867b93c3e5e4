"""The edges of each op: channel counts around the lanes, odd and 1x1 maps, maps smaller than the kernel, batch 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mnv3_fast.testing.cases import (
    EDGE_CHANNELS,
    bias_of,
    block,
    depthwise,
    fold,
    gate,
    map_of,
    pointwise,
    squeeze_excite,
    stem,
    weight_of,
)


def linear(inputs: int, outputs: int, activation: str = "none", bias: bool = True, scale: float = 1.0) -> Callable:
    """A builder of the "linear" stage of ``network`` cases."""

    def build(generator: torch.Generator, layout: str) -> tuple[tuple, dict[str, Any]]:
        weight = weight_of(generator, outputs, inputs)
        return (None, weight, bias_of(generator, outputs, bias)), {"activation": activation, "scale": scale}

    return build


def network(n: int, c: int, h: int, w: int, *stages: tuple[str, Callable] | str, bytes: bool = False) -> Callable:
    """A builder of ``network`` cases: "pool", or the name of a stage and a builder of its own cases, input left out."""

    def build(generator: torch.Generator, layout: str) -> tuple[tuple, dict[str, Any]]:
        x = map_of(generator, n, c, h, w, layout)
        x = (x * 60 + 128).clamp(0, 255).to(torch.uint8) if bytes else x
        rows: list[tuple] = []
        for stage in stages:
            if isinstance(stage, str):
                rows.append((stage,))
            else:
                (_, *arguments), options = stage[1](generator, "contiguous")
                rows.append((stage[0], tuple(arguments), options))
        return (x, rows), {}

    return build


_WHOLE = (
    ("stem_conv", stem(1, 3, 1, 1, 16, activation="hardswish")),
    ("inverted_residual", block(1, 16, 5, 5, 40, 24, 3, 8, stride=2, activation="relu")),
    ("inverted_residual", block(1, 24, 5, 5, 72, 24, 5, residual=True, activation="hardswish")),
    ("pointwise_conv", pointwise(1, 24, 1, 1, 40, activation="hardswish")),
    "pool",
    ("linear", linear(40, 33, "hardswish")),
    ("linear", linear(33, 10)),
)
_SAME = (
    ("stem_conv", stem(1, 3, 1, 1, 16, padding="same", activation="hardswish")),
    ("inverted_residual", block(1, 16, 5, 5, 40, 24, 3, stride=2, padding="same", activation="relu")),
    ("inverted_residual", block(1, 24, 5, 5, 72, 24, 5, 8, stride=2, padding="same", slope=0.2)),
    ("inverted_residual", block(1, 24, 5, 5, 72, 24, 5, padding="same", residual=True, activation="hardswish")),
    "pool",
    ("linear", linear(24, 33, "hardswish")),
    ("linear", linear(33, 10, scale=0.8)),
)
_END = (("pointwise_conv", pointwise(1, 40, 1, 1, 24, activation="hardswish")), "pool")

EDGES: dict[str, list[tuple[str, Callable]]] = {
    "fold_batch_norm": [
        ("conv", fold(16, 3, 3, 3)),
        ("depthwise", fold(17, 1, 5, 5, bias=True)),
        ("pointwise", fold(33, 9, 1, 1, affine=False)),
        ("linear", fold(1, 7, bias=True)),
    ],
    "stem_conv": [
        *[(f"outputs{c}", stem(1, 3, 9, 11, c, activation="hardswish")) for c in EDGE_CHANNELS],
        ("bytes", stem(2, 3, 17, 16, 16, bytes=True, activation="hardswish")),
        ("gray", stem(2, 1, 13, 5, 16, activation="relu")),
        ("four", stem(1, 4, 8, 8, 20, kernel=5)),
        ("one_pixel", stem(1, 3, 1, 1, 16)),
        ("stride1", stem(1, 3, 6, 31, 16, stride=1)),
        ("stride3x1", stem(1, 3, 10, 20, 16, stride=(3, 1))),
        ("same", stem(2, 3, 14, 14, 16, padding=(0, 1, 0, 1))),
        ("dilated", stem(1, 3, 12, 33, 16, dilation=2, stride=1, padding=2)),
        ("kernel1", stem(1, 3, 5, 5, 16, kernel=1)),
        ("many_taps", stem(2, 6, 19, 20, 16, kernel=(7, 5))),
        ("bias", stem(1, 3, 9, 10, 16, bias=True)),
        ("no_norm", stem(1, 3, 9, 10, 24, bias=True, batch_norm=None, activation="relu")),
        ("not_affine", stem(2, 3, 9, 10, 16, affine=False)),
        ("no_batch", stem(0, 3, 8, 8, 16)),
        ("same_even", stem(2, 3, 14, 12, 16, padding="same", activation="hardswish")),
        ("same_odd", stem(1, 3, 9, 13, 17, padding="same")),
        ("same_bytes", stem(2, 3, 16, 17, 16, bytes=True, padding="same")),
        ("same_one_pixel", stem(2, 3, 1, 1, 16, kernel=5, padding="same")),
        ("same_dilated", stem(1, 3, 12, 7, 16, dilation=2, stride=(1, 3), padding="same")),
    ],
    "pointwise_conv": [
        *[(f"inputs{c}", pointwise(1, c, 3, 5, 16, activation="relu")) for c in EDGE_CHANNELS],
        *[(f"outputs{c}", pointwise(2, 10, 4, 4, c, residual=True, activation="hardswish")) for c in EDGE_CHANNELS],
        *[(f"pixels{w}", pointwise(1, 12, 1, w, 40, gated=True)) for w in (1, 2, 3, 6, 7, 13, 14, 15, 29, 57)],
        ("bias", pointwise(1, 20, 5, 6, 24, bias=True, activation="hardswish")),
        ("no_norm", pointwise(2, 20, 5, 6, 33, bias=True, batch_norm=None, gated=True)),
        ("plain", pointwise(1, 20, 5, 6, 16, batch_norm=None)),
        ("not_affine", pointwise(2, 20, 5, 6, 16, affine=False, residual=True)),
        ("flat_weight", pointwise(1, 20, 5, 6, 16, flat=True)),
        ("gate_residual", pointwise(3, 18, 5, 7, 56, gated=True, residual=True)),
        ("strips", pointwise(1, 1024, 8, 9, 8, gated=True)),
        ("no_batch", pointwise(0, 8, 4, 4, 8, gated=True, residual=True)),
    ],
    "depthwise_conv": [
        *[(f"channels{c}", depthwise(2, c, 7, 9, 3, activation="hardswish")) for c in EDGE_CHANNELS],
        *[(f"width{w}", depthwise(1, 8, 5, w, 5, activation="relu")) for w in (1, 2, 6, 7, 8, 14, 15, 16, 29, 30)],
        ("kernel1", depthwise(1, 20, 5, 6, 1)),
        ("bias", depthwise(1, 20, 6, 7, 3, bias=True, activation="relu")),
        ("no_norm", depthwise(2, 17, 6, 7, 3, bias=True, batch_norm=None)),
        ("plain", depthwise(1, 16, 6, 7, 5, batch_norm=None)),
        ("not_affine", depthwise(2, 24, 6, 7, 5, affine=False)),
        *[(f"mean{c}", depthwise(2, c, 7, 9, 3, activation="hardswish", return_mean=True)) for c in EDGE_CHANNELS],
        ("mean_stride2", depthwise(2, 72, 15, 13, 5, stride=2, activation="relu", return_mean=True)),
        ("mean_tall", depthwise(1, 24, 61, 5, 5, return_mean=True)),
        ("mean_one_pixel", depthwise(3, 24, 1, 1, 3, return_mean=True)),
        ("mean_no_batch", depthwise(0, 24, 4, 4, 3, return_mean=True)),
        ("kernel7", depthwise(1, 20, 9, 8, 7, stride=2)),
        ("kernel3x5", depthwise(1, 20, 9, 8, (3, 5), padding=(1, 2))),
        ("stride3", depthwise(1, 9, 11, 13, 3, stride=3)),
        ("stride1x2", depthwise(1, 9, 11, 13, 5, stride=(1, 2))),
        ("dilated", depthwise(1, 24, 13, 11, 5, dilation=2, padding=4)),
        ("dilated_stride2", depthwise(1, 24, 13, 15, 3, dilation=(3, 2), stride=2, padding=3)),
        ("same", depthwise(2, 16, 14, 14, 5, stride=2, padding=(1, 2, 1, 2))),
        ("one_sided", depthwise(1, 16, 6, 7, 3, padding=(0, 3, 2, 0))),
        ("no_padding", depthwise(1, 16, 9, 9, 5, padding=0)),
        ("all_padding", depthwise(1, 16, 2, 2, 3, padding=6)),
        ("one_pixel", depthwise(2, 17, 1, 1, 5)),
        ("smaller_than_kernel", depthwise(1, 16, 2, 3, 7)),
        ("no_batch", depthwise(0, 16, 7, 7, 3)),
        ("same_even", depthwise(2, 16, 14, 12, 5, stride=2, padding="same", return_mean=True)),
        ("same_odd", depthwise(1, 24, 15, 13, 3, stride=2, padding="same", activation="hardswish")),
        ("same_rectangle", depthwise(1, 17, 8, 13, 3, stride=2, padding="same", return_mean=True)),
        ("same_stride1", depthwise(1, 9, 6, 7, 5, padding="same")),
        ("same_stride3", depthwise(2, 16, 10, 11, 5, stride=3, padding="same")),
        ("same_dilated", depthwise(1, 20, 11, 12, (3, 5), dilation=2, stride=(2, 1), padding="same")),
        ("same_one_pixel", depthwise(2, 17, 1, 1, 3, stride=2, padding="same")),
        ("same_smaller_than_kernel", depthwise(1, 16, 2, 3, 7, stride=2, padding="same")),
        ("same_larger_stride", depthwise(1, 16, 7, 8, 1, stride=(3, 2), padding="same")),
    ],
    "squeeze_excite_gate": [
        *[(f"channels{c}", gate(2, c, 8)) for c in EDGE_CHANNELS],
        *[(f"squeeze{s}", gate(1, 24, s, activation="hardswish")) for s in (1, 7, 9, 16, 17)],
        ("sigmoid", gate(3, 40, 8, gate="sigmoid")),
        ("no_bias", gate(2, 24, 8, bias=False)),
        ("slope", gate(1, 40, 8, slope=0.2)),
        ("no_batch", gate(0, 16, 8)),
    ],
    "squeeze_excite": [
        *[(f"channels{c}", squeeze_excite(2, c, 5, 3, 8)) for c in EDGE_CHANNELS],
        ("one_pixel", squeeze_excite(1, 24, 1, 1, 8)),
        ("constant", squeeze_excite(1, 24, 224, 224, 8, constant=True)),
        ("wide", squeeze_excite(1, 24, 3, 130, 8)),
        ("sigmoid", squeeze_excite(2, 24, 4, 4, 6, gate="sigmoid")),
        ("no_bias", squeeze_excite(2, 24, 4, 4, 6, bias=False)),
        ("no_batch", squeeze_excite(0, 16, 4, 4, 8)),
    ],
    "inverted_residual": [
        *[(f"hidden{c}", block(1, 8, 6, 7, c, 16, 3, 8, activation="hardswish")) for c in EDGE_CHANNELS],
        *[(f"outputs{c}", block(1, 8, 6, 7, 20, c, 3)) for c in EDGE_CHANNELS],
        *[(f"inputs{c}", block(2, c, 5, 5, 40, c, 5, residual=True)) for c in EDGE_CHANNELS],
        ("no_expand", block(2, 24, 9, 8, 0, 24, 3, 8, residual=True)),
        ("no_expand_stride2", block(2, 20, 9, 8, 0, 12, 5, stride=2)),
        ("wide", block(1, 8, 5, 45, 36, 8, 3, residual=True)),
        ("tall", block(1, 8, 61, 4, 36, 8, 5, residual=True)),
        ("same", block(1, 8, 14, 14, 24, 16, 5, 8, stride=2, padding=(1, 2, 1, 2))),
        ("dilated", block(1, 16, 11, 13, 40, 16, 5, 8, dilation=2, padding=4, residual=True)),
        ("kernel7", block(1, 8, 9, 9, 24, 8, 7, stride=3)),
        ("one_pixel", block(2, 16, 1, 1, 48, 16, 5, 8, residual=True)),
        ("bias", block(2, 16, 5, 6, 40, 16, 3, 8, bias=True, residual=True)),
        ("no_norm", block(1, 16, 5, 6, 40, 24, 3, 8, bias=True, norm=False, activation="hardswish")),
        ("plain", block(1, 16, 5, 6, 40, 24, 3, norm=False)),
        ("not_affine", block(2, 16, 5, 6, 40, 24, 5, affine=False)),
        ("sigmoid_gate", block(1, 16, 5, 5, 48, 16, 3, 8, gate="sigmoid")),
        ("slope", block(1, 16, 5, 5, 48, 16, 3, 8, slope=0.2)),
        ("no_batch", block(0, 16, 5, 5, 48, 16, 3, 8)),
        ("same_even", block(2, 8, 14, 12, 24, 16, 5, 8, stride=2, padding="same")),
        ("same_odd", block(1, 8, 13, 15, 36, 16, 5, 8, stride=2, padding="same", activation="hardswish")),
        ("same_rows", block(1, 8, 10, 14, 36, 16, 3, stride=2, padding="same")),
        ("same_residual", block(2, 16, 7, 8, 40, 16, 5, 8, dilation=2, padding="same", residual=True)),
        ("same_stride3", block(1, 8, 11, 10, 0, 16, 5, stride=3, padding="same")),
        ("same_one_pixel", block(2, 16, 1, 1, 48, 24, 5, 8, stride=2, padding="same")),
    ],
    "network": [
        ("whole", network(2, 3, 33, 31, *_WHOLE)),
        ("whole_one_pixel", network(3, 3, 1, 1, *_WHOLE)),
        ("whole_no_batch", network(0, 3, 33, 31, *_WHOLE)),
        ("whole_bytes", network(2, 3, 21, 24, *_WHOLE, bytes=True)),
        *[(f"classes{c}", network(2, 40, 7, 5, *_END, ("linear", linear(24, c)))) for c in EDGE_CHANNELS],
        ("body", network(2, 3, 29, 40, *_WHOLE[:4])),
        ("blocks", network(1, 16, 13, 9, *_WHOLE[1:3])),
        ("stem_alone", network(1, 1, 9, 12, ("stem_conv", stem(1, 1, 1, 1, 17, bias=True, batch_norm=None)))),
        ("block_alone", network(2, 20, 9, 8, ("inverted_residual", block(1, 20, 9, 8, 0, 12, 5, stride=2)))),
        ("pointwise_alone", network(1, 20, 5, 6, ("pointwise_conv", pointwise(1, 20, 1, 1, 33, affine=False)))),
        ("end", network(1, 40, 7, 7, *_END)),
        ("pool_behind_block", network(2, 16, 13, 9, *_WHOLE[1:3], "pool", ("linear", linear(24, 10, bias=False)))),
        ("same_even", network(2, 3, 32, 24, *_SAME)),
        ("same_odd", network(2, 3, 33, 25, *_SAME)),
        ("same_bytes", network(1, 3, 18, 31, *_SAME, bytes=True)),
        ("same_one_pixel", network(2, 3, 1, 1, *_SAME)),
    ],
}
