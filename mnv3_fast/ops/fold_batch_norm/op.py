"""``mnv3_fast::fold_batch_norm``: schema, fake, checks and the function that users call."""

from __future__ import annotations

import torch
from torch import Tensor

from mnv3_fast.ops import registration
from mnv3_fast.ops.checks import BatchNorm, check_batch_norm, check_tensor
from mnv3_fast.ops.fold_batch_norm import reference

SCHEMA = (
    "fold_batch_norm(Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, Tensor bn_mean, Tensor bn_var, "
    "float bn_eps) -> (Tensor, Tensor)"
)


def _fake(weight, bias, bn_weight, bn_bias, bn_mean, bn_var, bn_eps):
    folded = torch.empty_like(weight, memory_format=torch.contiguous_format)
    return folded, weight.new_empty(weight.shape[0])


DTYPES = (torch.float32, torch.float64)

OP = registration.register(SCHEMA, reference.fold_batch_norm, _fake, maps=False, ranks=(("weight", (2, 3, 4)),))
FUNCTION = registration.differentiable("fold_batch_norm", OP, reference.fold_batch_norm)


def prepare(weight: Tensor, bias: Tensor | None, batch_norm: BatchNorm) -> tuple:
    """The checked arguments of the raw op."""
    shape = [None] * weight.dim() if isinstance(weight, Tensor) else [None]
    check_tensor("fold_batch_norm", "weight", weight, shape, "[O, ...]", DTYPES)
    if not 2 <= weight.dim() <= 4:
        raise ValueError(f"fold_batch_norm: weight must have 2 to 4 dimensions, got {list(weight.shape)}")
    channels = weight.shape[0]
    if bias is not None:
        check_tensor("fold_batch_norm", "bias", bias, [channels], f"[O] with O = {channels}", DTYPES, weight.device)
    if batch_norm is None:
        raise TypeError(
            "fold_batch_norm: batch_norm must be (weight, bias, running_mean, running_var, eps), got NoneType"
        )
    return (weight, bias, *check_batch_norm("fold_batch_norm", batch_norm, channels, weight.device, DTYPES))


def fold_batch_norm(weight: Tensor, bias: Tensor | None, batch_norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Fold a BatchNorm with running statistics into the convolution before it; the arithmetic is fp64.

    Args:
        weight: [O, ...], the convolution's weight, float32 or float64.
        bias: [O] or None.
        batch_norm: (weight, bias, running_mean, running_var, eps), vectors [O]; weight and bias may be None.

    Returns:
        weight [O, ...] and bias [O] of the one convolution that does both, in weight's dtype. The kernel runs if all
        are float32, else the reference.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
    """
    args = prepare(weight, bias, batch_norm)
    if any(tensor.dtype == torch.float64 for tensor in registration.tensors_in(args)):
        return reference.fold_batch_norm(*args)
    return registration.call(OP, reference.fold_batch_norm, FUNCTION, args, maps=False)
