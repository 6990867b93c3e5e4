"""Folded weights as the kernels read them: in the compute dtype, with fp32 biases.

BatchNorm is folded in fp64 and rounded once more to the compute dtype here; a weight is transposed only where a kernel
reads channels side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mnv3_fast.engine.kinds import BLOCK, LINEAR, POINTWISE, STEM
from mnv3_fast.gpu import choice
from mnv3_fast.ops.fold_batch_norm.reference import fold_batch_norm
from mnv3_fast.ops.inverted_residual.layout import Layer, unflatten

if TYPE_CHECKING:
    from mnv3_fast.ops.inverted_residual.cuda_kernel import Packed


def pack_pointwise(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[O, I] or [O, I, 1, 1] -> [O, I]: both sides of the product are read along the inputs."""
    return weight.detach().flatten(1).to(dtype).contiguous()


def pack_depthwise(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[C, 1, kh, kw] -> [kh * kw, C]: a tap of neighbouring channels in one load."""
    return weight.detach().flatten(1).t().to(dtype).contiguous()


def pack_stem(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[O, I, kh, kw] -> [O, kh * kw * I]: a row of the matrix that the image is multiplied by."""
    return weight.detach().permute(0, 2, 3, 1).flatten(1).to(dtype).contiguous()


def pack_vector(vector: Tensor | None, channels: int, device: torch.device) -> Tensor:
    """A bias [channels] in fp32; zeros where there is none."""
    if vector is None:
        return torch.zeros(channels, dtype=torch.float32, device=device)
    return vector.detach().float().contiguous()


@dataclass(frozen=True)
class Convolution:
    """A layer ready for its kernel: packed weight, fp32 bias, kernel (h, w), eight window ints, activation."""

    weight: Tensor
    bias: Tensor
    channels: int
    kernel: tuple[int, int]
    window: tuple[int, ...]
    activation: int


@dataclass(frozen=True)
class SqueezeExcite:
    """Both layers of squeeze-excite; activation and gate as ints."""

    layers: tuple[Tensor, Tensor, Tensor, Tensor]
    activation: int
    gate: int
    slope: float


@dataclass(frozen=True)
class Block:
    """An inverted residual block ready for its kernels.

    ``fused`` are the same weights in the order of the CUDA kernels of whole blocks, where these may be chosen.
    """

    expand: Convolution | None
    depthwise: Convolution
    squeeze_excite: SqueezeExcite | None
    project: Convolution
    residual: bool
    fused: Packed | None = None


NO_WINDOW = (1, 1, 0, 0, 0, 0, 1, 1)
SMALL = 7
"""Pixels a side of the last maps of MobileNetV3."""


def fold(layer: Layer) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its BatchNorm in them, fp32 whatever the dtype of the model."""
    weight, bias, *norm = [
        None if t is None else t.detach().float() for t in (layer.weight, layer.bias, *layer.batch_norm)
    ]
    assert weight is not None
    gamma, beta, mean, variance = norm
    if mean is None or variance is None:
        return weight, pack_vector(bias, weight.shape[0], weight.device)
    return fold_batch_norm(weight, bias, gamma, beta, mean, variance, layer.eps)


def pack_layer(kind: int, layer: Layer, window: Sequence[int], activation: int, dtype: torch.dtype) -> Convolution:
    """A convolution of a kind of stage (STEM, POINTWISE, LINEAR; BLOCK for the depthwise one of a block)."""
    weight, bias = fold(layer)
    packers = {STEM: pack_stem, BLOCK: pack_depthwise, POINTWISE: pack_pointwise, LINEAR: pack_pointwise}
    kernel = (weight.shape[2], weight.shape[3]) if weight.dim() == 4 else (1, 1)
    return Convolution(
        packers[kind](weight, dtype), bias.contiguous(), weight.shape[0], kernel, tuple(window), activation
    )


def pack_block(tensors: Sequence[Tensor], spec: Sequence[int], constants: Sequence[float], dtype: torch.dtype) -> Block:
    """A flattened block (``mnv3_fast.ops.inverted_residual.layout``).

    Raises:
        ValueError: if the numbers of tensors, ints or constants do not fit each other.
    """
    block = unflatten(tensors, spec, constants)
    expand = squeeze_excite = None
    if block.expand:
        expand = pack_layer(POINTWISE, block.expand, NO_WINDOW, spec[2], dtype)
    if block.squeeze_excite:
        fc1, bias1, fc2, bias2 = block.squeeze_excite
        packed = pack_pointwise(fc1, dtype), pack_vector(bias1, fc1.shape[0], fc1.device)
        packed += pack_pointwise(fc2, dtype), pack_vector(bias2, fc2.shape[0], fc2.device)
        squeeze_excite = SqueezeExcite(packed, spec[14], spec[15], float(constants[3]))
    depthwise = pack_layer(BLOCK, block.depthwise, spec[5:13], spec[4], dtype)
    project = pack_layer(POINTWISE, block.project, NO_WINDOW, spec[17], dtype)
    block = Block(expand, depthwise, squeeze_excite, project, bool(spec[18]))
    return replace(block, fused=_pack_fused(block, dtype))


def _pack_fused(block: Block, dtype: torch.dtype) -> Packed | None:
    """None where there are no CUDA kernels, and of a block that they do not compute even where its map is small."""
    if block.expand is None or not choice.packs(block.depthwise.weight.device):
        return None
    from mnv3_fast.ops.inverted_residual import cuda_kernel  # which imports this module

    inputs, sides = block.expand.weight.shape[1], range(1, SMALL + 1)  # of a smaller map less is in shared memory
    asked = (choice.block_questions(block, (1, inputs, *size), dtype)[0] for size in product(sides, sides))
    return cuda_kernel.pack(block) if any(map(choice.is_known, asked)) else None
