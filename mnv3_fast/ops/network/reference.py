"""MobileNetV3 (Howard et al. 2019, tables 1 and 2), or a part of it, from its original tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from mnv3_fast.engine.kinds import BLOCK, POINTWISE, POOL, STEM
from mnv3_fast.ops.elements import activate
from mnv3_fast.ops.inverted_residual.reference import inverted_residual
from mnv3_fast.ops.network.layout import split
from mnv3_fast.ops.pointwise_conv.reference import pointwise_conv
from mnv3_fast.ops.stem_conv.reference import stem_conv


def network(input: Tensor, tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]) -> Tensor:
    """stage after stage: [N, C, H, W] -> [N, O, OH, OW], or [N, F] behind a pool."""
    x = input
    for stage in split(tensors, spec, constants):
        if stage.kind == BLOCK:
            x = inverted_residual(x, stage.tensors, stage.spec, stage.constants)
        elif stage.kind == POOL:
            x = x.mean((2, 3))
        else:
            layer, activation = stage.layer(), stage.spec[1]
            norm = *layer.batch_norm, layer.eps
            if stage.kind == STEM:
                x = stem_conv(x, layer.weight, layer.bias, *norm, None, None, *stage.window(), activation)
            elif stage.kind == POINTWISE:
                x = pointwise_conv(x, layer.weight, layer.bias, *norm, None, None, activation)
            else:
                x = x if stage.constants[0] == 1 else x * stage.constants[0]
                x = activate(functional.linear(x, layer.weight.flatten(1), layer.bias), activation)
    return x
