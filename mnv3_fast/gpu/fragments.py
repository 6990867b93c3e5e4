"""Weights in the order in which the lanes of a warp read them for tensor cores (``csrc/cuda/matrix.h``)."""

from __future__ import annotations

import torch
from torch import Tensor

COLUMNS = 16
"""Outputs, and inputs, of the part of a weight that a warp reads at once: 16 bytes a lane."""


def pack_fragments(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight [O, I] as fragments of the right factor of a product, zeros beyond O and I.

    Lane 4 g + t of a warp holds, for outputs n = 16 j + g and then n + 8, the inputs 16 i + 2 t, + 1, + 8 and + 9 (PTX
    ISA, "Matrix Fragments for mma.m16n8k16").

    Returns:
        [ceil(O / 16), ceil(I / 16), 32, 8] of the dtype, dense.
    """
    outputs, inputs = weight.shape
    tiles_n, tiles_k = -(-outputs // COLUMNS), -(-inputs // COLUMNS)
    padded = weight.new_zeros(tiles_n * COLUMNS, tiles_k * COLUMNS)
    padded[:outputs, :inputs] = weight.detach()
    # n = 16 j + 8 half + g, k = 16 i + 8 upper + 2 t + odd
    parts = padded.view(tiles_n, 2, 8, tiles_k, 2, 4, 2)
    return parts.permute(0, 3, 2, 5, 1, 4, 6).reshape(tiles_n, tiles_k, 32, 8).to(dtype).contiguous()
