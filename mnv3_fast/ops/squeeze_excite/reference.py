"""Squeeze-excite (Hu et al. 2018) as ``torchvision.ops.SqueezeExcitation`` computes it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mnv3_fast.ops.squeeze_excite_gate.reference import squeeze_excite_gate


def squeeze_excite(input: Tensor, *layers: Any) -> Tensor:
    """input * gate(mean(input)): [N, C, H, W] -> [N, C, H, W]; the layers as of ``squeeze_excite_gate``."""
    return input * squeeze_excite_gate(input.mean((2, 3)), *layers)[:, :, None, None]
