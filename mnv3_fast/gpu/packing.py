"""Folded weights as the Triton kernels read them: in the compute dtype, with fp32 biases.

BatchNorm is folded in fp64 and rounded once more to the compute dtype here; a weight is transposed only where a kernel
reads channels side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
