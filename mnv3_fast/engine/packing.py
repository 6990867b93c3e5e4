"""From a description to a plan: folds and packs whatever a network, or a part of one, is described to be made of."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mnv3_fast.engine.plan import PlanBuilder, fold_layer
from mnv3_fast.models.description import ConvLayer, LinearLayer, NetDescription
from mnv3_fast.ops.elements import ACTIVATIONS
from mnv3_fast.ops.inverted_residual.layout import Layer


def pack_net(
    description: NetDescription, scale: Tensor | None = None, shift: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """The plan of what is described, and its geometry (``PlanBuilder.build``); scale and shift as ``stem_conv``'s."""
    builder = PlanBuilder(description.input_channels())
    if description.stem is not None:
        weight, bias = _folded(description.stem)
        window = [*weight.shape[2:], *description.stem.window()]
        builder.add_stem(weight, bias, window, ACTIVATIONS[description.stem.activation], scale, shift)
    for block in description.blocks:
        builder.add_block(*block.flatten())
    if description.tail is not None:
        builder.add_pointwise(*_folded(description.tail), ACTIVATIONS[description.tail.activation])
    if description.pooled:
        builder.add_pool()
    for layer in description.head:
        _add_linear(builder, layer)
    return builder.build()


def _folded(layer: ConvLayer) -> tuple[Tensor, Tensor]:
    norm = layer.batch_norm() or (None, None, None, None, 0.0)
    return fold_layer(Layer(layer.conv.weight, layer.conv.bias, norm[:4], norm[4]))


def _add_linear(builder: PlanBuilder, layer: LinearLayer) -> None:
    linear: Any = layer.linear
    builder.add_linear(linear.weight.flatten(1), linear.bias, ACTIVATIONS[layer.activation])
