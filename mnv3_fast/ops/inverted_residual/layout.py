"""The flattened form of a block: what ``mnv3_fast::inverted_residual`` takes besides its input.

tensors: for expand (if there is one), depthwise and project in turn: weight, then bias if its flags say so, then
BatchNorm's weight, bias, running_mean, running_var (only the last two if it is not affine); then fc1 weight and bias
and fc2 weight and bias of squeeze-excite, if there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

HAS_BIAS, HAS_BATCH_NORM, NOT_AFFINE = 1, 2, 4

SPEC = (
    "has_expand",
    "expand_flags",
    "expand_activation",
    "depthwise_flags",
    "depthwise_activation",
    "stride_h",
    "stride_w",
    "pad_left",
    "pad_right",
    "pad_top",
    "pad_bottom",
    "dilation_h",
    "dilation_w",
    "has_squeeze_excite",
    "squeeze_activation",
    "gate",
    "project_flags",
    "project_activation",
    "residual",
)
"""The ints of ``spec``, in order; ``constants`` is expand_eps, depthwise_eps, project_eps, slope."""


@dataclass(frozen=True)
class Layer:
    """One convolution of a block: weight, bias, the four BatchNorm vectors (None where absent), eps."""

    weight: Tensor
    bias: Tensor | None
    batch_norm: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    eps: float


@dataclass(frozen=True)
class Block:
    """The tensors of a flattened block by name."""

    expand: Layer | None
    depthwise: Layer
    project: Layer
    squeeze_excite: tuple[Tensor, Tensor, Tensor, Tensor] | None


def unflatten(tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float]) -> Block:
    """The inverse of ``BlockDescription.flatten``."""
    rest = list(tensors)
    expand = _take(rest, spec[1], constants[0]) if spec[0] else None
    depthwise = _take(rest, spec[3], constants[1])
    project = _take(rest, spec[16], constants[2])
    squeeze_excite = (rest[0], rest[1], rest[2], rest[3]) if spec[13] else None
    return Block(expand, depthwise, project, squeeze_excite)


def _take(tensors: list[Tensor], flags: int, eps: float) -> Layer:
    weight = tensors.pop(0)
    bias = tensors.pop(0) if flags & HAS_BIAS else None
    if not flags & HAS_BATCH_NORM:
        return Layer(weight, bias, (None, None, None, None), 0.0)
    gamma = None if flags & NOT_AFFINE else tensors.pop(0)
    beta = None if flags & NOT_AFFINE else tensors.pop(0)
    return Layer(weight, bias, (gamma, beta, tensors.pop(0), tensors.pop(0)), eps)
