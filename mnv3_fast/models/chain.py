"""Described layers that follow each other, as the networks that plans are made of."""

from __future__ import annotations

from collections.abc import Sequence

from mnv3_fast.models.checks import Unsupported
from mnv3_fast.models.description import BlockDescription, ConvLayer, NetDescription, kind_of_conv

Layer = BlockDescription | ConvLayer


def chain_of(layers: Sequence[Layer]) -> NetDescription:
    """[stem?, blocks and 1x1 convolutions..., tail?], a map; raises Unsupported for a layer out of its place."""
    stem = None
    for i, layer in enumerate(layers):
        if isinstance(layer, BlockDescription):
            continue
        kind = kind_of_conv(layer)
        if kind == "stem" and i == 0:
            stem = layer
        elif kind != "pointwise":
            raise Unsupported(f"a {kind} convolution stands at position {i} of the network")
    blocks = list(layers) if stem is None else list(layers)[1:]
    tail = blocks.pop() if blocks and isinstance(blocks[-1], ConvLayer) else None
    return NetDescription(stem, tuple(blocks), tail, False)


def parts_between(layers: Sequence[Layer], ends: Sequence[int]) -> tuple[NetDescription, ...]:
    """The chain from the input to the first wanted output, from there to the next, and so on.

    Args:
        layers: the whole network; what follows the last output is left out.
        ends: the places of the layers whose outputs are wanted, each once, in order.
    """
    starts = [0, *(end + 1 for end in ends)]
    return tuple(chain_of(layers[start : end + 1]) for start, end in zip(starts, ends, strict=False))
