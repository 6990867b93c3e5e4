"""BatchNorm with running statistics folded into the convolution before it (Jacob et al. 2018, eq. 14), in fp64."""

from __future__ import annotations

import torch
from torch import Tensor


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    bn_mean: Tensor,
    bn_var: Tensor,
    bn_eps: float,
) -> tuple[Tensor, Tensor]:
    """weight [O, ...], vectors [O] -> folded weight and bias of weight's dtype, dense."""
    scale = torch.rsqrt(bn_var.double() + bn_eps)
    if bn_weight is not None:
        scale = scale * bn_weight.double()
    shift = -bn_mean.double() if bias is None else bias.double() - bn_mean.double()
    shift = shift * scale
    if bn_bias is not None:
        shift = shift + bn_bias.double()
    folded = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return folded.to(weight.dtype).contiguous(memory_format=torch.contiguous_format), shift.to(weight.dtype)
