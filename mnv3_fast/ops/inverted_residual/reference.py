"""The inverted residual block of MobileNetV3 (Howard et al. 2019, figure 4), from its original tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mnv3_fast.ops.depthwise_conv.reference import depthwise_conv
from mnv3_fast.ops.inverted_residual.layout import unflatten
from mnv3_fast.ops.pointwise_conv.reference import pointwise_conv
from mnv3_fast.ops.squeeze_excite_gate.reference import squeeze_excite_gate


def inverted_residual(
    input: Tensor, tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]
) -> Tensor:
    """expand 1x1 -> depthwise -> squeeze-excite -> project 1x1 (+ input): [N, C, H, W] -> [N, O, OH, OW]."""
    block = unflatten(tensors, spec, constants)
    x = input
    if block.expand:
        e = block.expand
        x = pointwise_conv(x, e.weight, e.bias, *e.batch_norm, e.eps, None, None, spec[2])
    d = block.depthwise
    x = depthwise_conv(x, d.weight, d.bias, *d.batch_norm, d.eps, *spec[5:13], spec[4])
    gate = None
    if block.squeeze_excite:
        gate = squeeze_excite_gate(x.mean((2, 3)), *block.squeeze_excite, spec[14], spec[15], constants[3])
    p = block.project
    residual = input if spec[18] else None
    return pointwise_conv(x, p.weight, p.bias, *p.batch_norm, p.eps, gate, residual, spec[17])
